// The prepared weight for few tokens: [row tile][eight groups], picks and then values.
//
// A row of the tile is a lane. A pick is the packed meta of its eight groups; a group's two values are two vectors
// in float32, and the halves of one 32-bit lane in bfloat16. Memory: float32 4.25 bytes a kept weight = 0.53 of the
// dense weight; bfloat16 2.25 = 0.56 of dense.
#pragma once
#include "linear24_common.h"

namespace vlprune {
namespace {

constexpr int step_groups = 8;  // 32 bits hold the 4-bit meta of eight groups
constexpr int step_inputs = 4 * step_groups;

template <class V, class Element>
struct Step {
    uint32_t picks[V::width];
    Element values[step_groups][2 * V::width];

    static int64_t in_row_tile(int64_t in) { return ceil_div(in, step_inputs); }

    static int64_t bytes(int64_t out, int64_t in) {
        return ceil_div(out, V::width) * in_row_tile(in) * static_cast<int64_t>(sizeof(Step));
    }

    static int place(int row, int kept, const float*) { return kept * V::width + row; }
    static int place(int row, int kept, const uint16_t*) { return 2 * row + kept; }

    static void fill(const void* packed_values, const uint8_t* meta, int64_t out, int64_t in, void* prepared) {
        const auto* values = static_cast<const Element*>(packed_values);
        auto* step = static_cast<Step*>(prepared);
        const int64_t groups = in / 4, meta_stride = ceil_div(in, 8);
        std::memset(prepared, 0, static_cast<size_t>(bytes(out, in)));
        for (int64_t tile = 0; tile < out; tile += V::width) {
            const int rows = static_cast<int>(least(V::width, out - tile));
            for (int64_t first = 0; first < groups; first += step_groups, ++step) {
                const int count = static_cast<int>(least(step_groups, groups - first));
                for (int row = 0; row < rows; ++row) {
                    const int64_t o = tile + row;
                    for (int g = 0; g < count; ++g) {
                        const Element* pair = values + o * (in / 2) + 2 * (first + g);
                        step->picks[row] |= uint32_t(meta_nibble(meta + o * meta_stride, first + g)) << 4 * g;
                        step->values[g][place(row, 0, pair)] = pair[0];
                        step->values[g][place(row, 1, pair)] = pair[1];
                    }
                }
            }
        }
    }
};

}  // namespace
}  // namespace vlprune

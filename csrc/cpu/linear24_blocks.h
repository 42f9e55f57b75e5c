// The prepared weight: blocks of Vec::width output rows x 64 inputs, laid out [input block][row tile].
//
// One layout serves both schemes. A kept weight is found by lane (outputs on the lanes: a row of `values`
// is a vector) and by row (tokens on the lanes: one entry is broadcast). Beside it stand the 2-bit picks of
// the former and the ready byte offsets into the panel of the latter.
// Memory: float32 6.25 bytes a kept weight = 0.78 of the dense weight; bfloat16, whose value shares a word
// with its offset, 4.25 bytes = 1.06 of dense.
#pragma once
#include <cstdint>
#include <cstring>

#include "linear24.h"

namespace vlprune {
namespace {

constexpr int block_inputs = 64;
constexpr int block_groups = block_inputs / 4;
constexpr int block_kept = block_inputs / 2;
constexpr int groups_per_pick = 8;  // a 32-bit pick holds the 4-bit meta of eight groups
constexpr int block_picks = block_groups / groups_per_pick;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// A panel row holds one input of this many tokens.
template <class V>
constexpr int panel_tokens = V::width * V::panel_vectors;

template <class V, class Element>
struct Block;

template <class V>
struct Block<V, float> {
    float values[block_kept][V::width];
    uint32_t picks[block_picks][V::width];
    uint16_t offsets[V::width][block_kept];

    typename V::reg by_lane(int kept) const { return V::load(values[kept]); }
    typename V::reg by_row(int kept, int row) const { return V::set1(values[kept][row]); }
    int offset(int kept, int row) const { return offsets[row][kept]; }
    void set(int kept, int row, float value, int offset) {
        values[kept][row] = value;
        offsets[row][kept] = static_cast<uint16_t>(offset);
    }
};

template <class V>
struct Block<V, uint16_t> {
    uint32_t words[block_kept][V::width];  // bfloat16 in the upper half, offset in the lower
    uint32_t picks[block_picks][V::width];

    typename V::reg by_lane(int kept) const { return V::high_half(V::load_bits(words[kept])); }
    typename V::reg by_row(int kept, int row) const { return V::high_half(V::set1_bits(words[kept][row])); }
    int offset(int kept, int row) const { return static_cast<uint16_t>(words[kept][row]); }
    void set(int kept, int row, uint16_t value, int offset) {
        words[kept][row] = uint32_t(value) << 16 | static_cast<uint32_t>(offset);
    }
};

inline int meta_nibble(const uint8_t* meta_row, int64_t group) {
    return meta_row[group / 2] >> (group % 2 * 4) & 15;
}

template <class V, class Element>
struct Prepared {
    using B = Block<V, Element>;
    static_assert(sizeof(B) % 64 == 0, "blocks start on cache lines");
    static_assert(block_inputs * panel_tokens<V> * sizeof(float) <= 65536, "offsets have 16 bits");

    static int64_t bytes(int64_t out, int64_t in) {
        return ceil_div(out, V::width) * ceil_div(in, block_inputs) * static_cast<int64_t>(sizeof(B));
    }

    static void fill(const void* packed_values, const uint8_t* meta, int64_t out, int64_t in, void* prepared) {
        const auto* values = static_cast<const Element*>(packed_values);
        auto* block = static_cast<B*>(prepared);
        const int64_t tiles = ceil_div(out, V::width), groups = in / 4, meta_stride = ceil_div(in, 8);
        for (int64_t first_group = 0; first_group < groups; first_group += block_groups) {
            const int count = static_cast<int>(least(block_groups, groups - first_group));
            for (int64_t tile = 0; tile < tiles; ++tile, ++block) {
                std::memset(static_cast<void*>(block), 0, sizeof(B));
                const int rows = static_cast<int>(least(V::width, out - tile * V::width));
                for (int row = 0; row < rows; ++row) {
                    const int64_t o = tile * V::width + row;
                    for (int g = 0; g < count; ++g) {
                        const int nibble = meta_nibble(meta + o * meta_stride, first_group + g);
                        block->picks[g / groups_per_pick][row] |= uint32_t(nibble) << g % groups_per_pick * 4;
                        for (int slot = 0; slot < 2; ++slot) {
                            const int input = 4 * g + (nibble >> 2 * slot & 3);
                            block->set(2 * g + slot, row, values[o * (in / 2) + 2 * (first_group + g) + slot],
                                       input * panel_tokens<V> * static_cast<int>(sizeof(float)));
                        }
                    }
                }
            }
        }
    }
};

// Fills a register with bias entries, zeros past the end.
template <class V, class Element>
inline void load_bias(const void* bias, int64_t first, int64_t out, float* to) {
    Element entries[V::width] = {};
    if (bias) {
        const auto* source = static_cast<const Element*>(bias) + first;
        std::memcpy(entries, source, sizeof(Element) * static_cast<size_t>(least(V::width, out - first)));
    }
    V::store(to, V::load(entries));
}

}  // namespace
}  // namespace vlprune

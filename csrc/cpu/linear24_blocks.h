// The prepared weight: blocks of Vec::width output rows x 64 inputs, laid out [input block][row tile].
//
// One layout serves both schemes. With tokens on the lanes a row's kept weights are read four at a time, with
// their ready byte offsets into the panel; with outputs on the lanes a tile's values are first transposed into
// a scratch (12 KB, shared by all tokens) and the 2-bit picks, which are the packed meta, choose the inputs.
// Memory: float32 6.25 bytes a kept weight = 0.78 of the dense weight; bfloat16 4.25 bytes = 1.06 of dense.
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

// The next work unit for `part`, or -1: first those of its own equal share of [0, total), in order, so that a
// thread meets the same weights from call to call; then what other parts have not yet come to, because
// threads do not run equally fast.
inline int64_t claim(const Linear24& p, int64_t total, int part, int parts) {
    for (int i = 0; i < parts; ++i) {
        const int owner = part + i < parts ? part + i : part + i - parts;
        const int64_t begin = total * owner / parts, end = total * (owner + 1) / parts;
        int64_t* claimed = &p.cursors[owner].claimed;
        if (__atomic_load_n(claimed, __ATOMIC_RELAXED) >= end - begin) continue;
        const int64_t unit = begin + __atomic_fetch_add(claimed, 1, __ATOMIC_RELAXED);
        if (unit < end) return unit;
    }
    return -1;
}

// Floats from one panel row, which holds an input of width * panel_vectors tokens, to the next. A power of two
// of bytes would put all rows into the same sets of the first-level cache: 9 % slower with rows of 512 bytes than
// of 576, 64 tokens of 768 -> 3072 on Zen 3.
template <class V>
constexpr int panel_stride = V::width * V::panel_vectors + V::panel_padding;

constexpr int octet = 8;  // kept weights handled together; a row's count is padded to it
constexpr int octets_of(int64_t inputs) { return static_cast<int>((inputs + 15) / 16); }

// The values of an octet stand in registers as two quads, each repeated in every 128-bit lane.
template <class V>
struct Quads {
    typename V::reg first, second;
};

template <class V, class Element>
struct Block {
    struct Row {
        Element values[block_kept];
        uint64_t offsets[block_kept / 4];  // four of 16 bits each, the first lowest
    };
    Row rows[V::width];
    uint32_t picks[block_picks][V::width];
};

template <class V>
inline Quads<V> quads_of(const float* values) {
    return {V::broadcast4(values), V::broadcast4(values + 4)};
}
// Eight bfloat16 are four words: shifted up they give the first quad, masked the second.
template <class V>
inline Quads<V> quads_of(const uint16_t* values) {
    const auto words = V::broadcast4_bits(values);
    return {V::from_bits(V::template shift_left<16>(words)), V::high_half(words)};
}

// Where an octet's kept weight k stands in a row of values.
constexpr int place_of(int kept, const float*) { return kept; }
constexpr int place_of(int kept, const uint16_t*) { return kept / octet * octet + kept % 4 * 2 + kept / 4 % 2; }

// And the reverse.
constexpr int kept_at(int place, const float*) { return place; }
constexpr int kept_at(int place, const uint16_t*) { return place / octet * octet + place % 2 * 4 + place % 8 / 2; }

inline int meta_nibble(const uint8_t* meta_row, int64_t group) {
    return meta_row[group / 2] >> (group % 2 * 4) & 15;
}

template <class V, class Element>
struct Prepared {
    using B = Block<V, Element>;
    static constexpr int row_bytes = panel_stride<V> * static_cast<int>(sizeof(float));
    static_assert(sizeof(B) % 64 == 0, "blocks start on cache lines");
    static_assert(block_inputs * row_bytes <= 65536, "offsets have 16 bits");

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
                for (int row = 0; row < V::width; ++row) {
                    const int64_t o = tile * V::width + row;
                    for (int g = 0; g < block_groups; ++g) {
                        // Padding points behind the last input, where the panel holds zeros: 0 times a
                        // token's infinity would be NaN.
                        int nibble = 0, first_input = 4 * count;
                        if (row < rows && g < count) {
                            nibble = meta_nibble(meta + o * meta_stride, first_group + g);
                            first_input = 4 * g;
                            const Element* pair = values + o * (in / 2) + 2 * (first_group + g);
                            block->rows[row].values[place_of(2 * g, pair)] = pair[0];
                            block->rows[row].values[place_of(2 * g + 1, pair)] = pair[1];
                        }
                        block->picks[g / groups_per_pick][row] |= uint32_t(nibble) << g % groups_per_pick * 4;
                        const int low = first_input + (nibble & 3), high = first_input + (nibble >> 2);
                        const uint64_t offsets = uint64_t(low * row_bytes) | uint64_t(high * row_bytes) << 16;
                        if (g < 4 * octets_of(4 * count))
                            block->rows[row].offsets[g / 2] |= offsets << g % 2 * 32;
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

// Results of one token for `count` rows of the weight, from `at` in y on, with what is added to them.
template <class V, class Element>
inline void store_outputs(const Linear24& p, int64_t at, int64_t count, typename V::reg value) {
    auto* y = static_cast<Element*>(p.y) + at;
    const auto* residual = static_cast<const Element*>(p.residual);
    if (count == V::width) {
        V::store(y, residual ? V::add(value, V::load(residual + at)) : value);
        return;
    }
    Element line[V::width] = {};
    const auto bytes = sizeof(Element) * static_cast<size_t>(count);
    if (residual) {
        std::memcpy(line, residual + at, bytes);
        value = V::add(value, V::load(line));
    }
    V::store(line, value);
    std::memcpy(y, line, bytes);
}

}  // namespace
}  // namespace vlprune

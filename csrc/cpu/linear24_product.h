// The scheme of rows in pairs: a panel holds inputs as floats, and the sums of two rows are the registers.
#pragma once
#include <type_traits>
#include <utility>

#include "linear24_norm.h"
#include "linear24_pairs.h"

namespace vlprune {
namespace {

// Half of an octet's values, repeated in every 128-bit lane. One at a time: both would not fit the registers.
template <class V, int half>
inline typename V::reg quad_of(const float* values) {
    return V::broadcast4(values + 4 * half);
}
// Eight bfloat16 are four words: shifted up they give the first quad, masked the second.
template <class V, int half>
inline typename V::reg quad_of(const uint16_t* values) {
    const auto words = V::broadcast4_bits(values);
    return half ? V::high_half(words) : V::from_bits(V::template shift_left<16>(words));
}

// One shift after the other: GCC would make each from the first word, with one instruction more.
inline void in_place(uint64_t& word) { __asm__("" : "+r"(word)); }

template <class V, class Element_>
struct Product {
    using Vector = V;
    using Element = Element_;
    using Weight = Pairs<V, Element>;
    using Pair = typename Weight::Pair;
    using Tile = typename Weight::Tile;
    using Partners = typename Weight::Partners;
    using reg = typename V::reg;
    static constexpr int W = V::width;
    static constexpr int inputs = Weight::inputs;
    static constexpr int panel_vectors = V::panel_vectors;
    static constexpr int chunk_units = V::chunk_units;
    static constexpr int stride = Weight::stride;
    static constexpr int block_floats = inputs * stride;

    static void pack_strip(const Linear24& p, const Element* const (&rows)[W], float* to) {
        if constexpr (std::is_same_v<Element, float>) {
            if (p.norm) {
                pack_strip(p, rows, to, LayerNormLanes<V>(*p.norm, rows, p.in));
                return;
            }
        }
        pack_strip(p, rows, to, [](reg x, int64_t) { return x; });
    }

    // Inputs are padded with zeros, for weights that are padding.
    template <class Map>
    static void pack_strip(const Linear24& p, const Element* const (&rows)[W], float* to, const Map& map) {
        for (int64_t input = 0; input < p.in; input += W) {
            reg square[W];
            for (int t = 0; t < W; ++t) square[t] = load_inputs<V>(rows[t], input, p.in);
            V::transpose(square);
            const bool whole = input + W <= p.in;
            for (int i = 0; i < W; ++i, to += stride)
                V::store(to, whole || input + i < p.in ? map(square[i], input + i) : V::set1(0.0f));
        }
    }

    // A pair on its way through a block: where its weights are read, and the sums of its rows.
    template <int vectors>
    struct Stream {
        const Element* values;
        const uint64_t* offsets;
        uint64_t ahead[3];  // the next words of offsets, with V::reads_ahead
        reg a[vectors], b[vectors];

        void start(const Pair& pair) {
            values = pair.values;
            offsets = pair.offsets;
            if constexpr (V::reads_ahead)
                for (uint64_t& word : ahead) word = V::load_word(offsets++);
        }

        // Read ahead, the last words of a pair bring some behind its own: still of the tile.
        uint64_t next_word() {
            if constexpr (V::reads_ahead) {
                const uint64_t word = ahead[0];
                ahead[0] = ahead[1], ahead[1] = ahead[2], ahead[2] = V::load_word(offsets++);
                return word;
            } else {
                return *offsets++;
            }
        }

        static const float* next_input(const char* panel, uint64_t& word) {
            const auto* x = reinterpret_cast<const float*>(panel + (word & 0xffff));
            word >>= 16;
            in_place(word);
            return x;
        }

        template <int lane>
        void add_shared(const char* panel, uint64_t& word, reg quad) {
            const float* x = next_input(panel, word);
            const auto weight_a = V::template lane4<lane>(quad), weight_b = V::template lane4<lane + 1>(quad);
#pragma GCC unroll 12
            for (int v = 0; v < vectors; ++v) {
                const auto input = V::in_register(V::load(x + v * W));
                V::accumulate(a[v], weight_a, input);
                V::accumulate(b[v], weight_b, input);
            }
        }

        void add_shared(const char* panel) {
            uint64_t word = next_word();
            auto quad = quad_of<V, 0>(values);
            add_shared<0>(panel, word, quad);
            add_shared<2>(panel, word, quad);
            quad = quad_of<V, 1>(values);
            add_shared<0>(panel, word, quad);
            add_shared<2>(panel, word, quad);
            values += octet;
        }

        template <int lane>
        void add_own(const char* panel, uint64_t& word, reg quad, reg (&sum)[vectors]) {
            const float* x = next_input(panel, word);
            const auto weight = V::template lane4<lane>(quad);
#pragma GCC unroll 12
            for (int v = 0; v < vectors; ++v) sum[v] = V::fma(weight, V::load(x + v * W), sum[v]);
        }

        void add_own(const char* panel, uint64_t word, reg quad) {
            add_own<0>(panel, word, quad, a);
            add_own<1>(panel, word, quad, b);
            add_own<2>(panel, word, quad, a);
            add_own<3>(panel, word, quad, b);
        }

        void add_own(const char* panel) {
            add_own(panel, next_word(), quad_of<V, 0>(values));
            add_own(panel, next_word(), quad_of<V, 1>(values));
            values += octet;
        }
    };

    // Weights are one stream, read once a token block: without this Zen 3 is 7 % slower. The fewer the vectors, the
    // sooner a pair is done.
    template <int vectors>
    static void prefetch_ahead(const Pair& pair) {
        constexpr int pairs = vectors > 4 ? 2 : 4;
        V::template prefetch_stream<sizeof(Pair), pairs * sizeof(Pair)>(&pair);
    }

    // Of few vectors several pairs at a time, so that enough sums are in flight to cover the latency.
    template <int vectors, int together>
    __attribute__((aligned(64))) static void multiply(const float* panel, const Tile& tile, const float* start,
                                                      float* sums) {
        V::place_loops();
        const char* base = reinterpret_cast<const char*>(panel);
        for (int p = 0; p < W / 2; p += together) {
            Stream<vectors> streams[together];
#pragma GCC unroll 4
            for (int q = 0; q < together; ++q) {
                const Pair& pair = tile.pairs[p + q];
                const Partners rows = tile.partners[p + q];
                Stream<vectors>& stream = streams[q];
                stream.start(pair);
#pragma GCC unroll 12
                for (int v = 0; v < vectors; ++v) {
                    stream.a[v] = start ? V::set1(start[rows.first]) : V::load(sums + rows.first * stride + v * W);
                    stream.b[v] = start ? V::set1(start[rows.second]) : V::load(sums + rows.second * stride + v * W);
                }
                prefetch_ahead<vectors>(pair);
            }
            for (int o = 0; o < tile.shared; ++o)
#pragma GCC unroll 4
                for (int q = 0; q < together; ++q) streams[q].add_shared(base);
            for (int o = 0; o < tile.own; ++o)
#pragma GCC unroll 4
                for (int q = 0; q < together; ++q) streams[q].add_own(base);
#pragma GCC unroll 4
            for (int q = 0; q < together; ++q) {
                const Partners rows = tile.partners[p + q];
#pragma GCC unroll 12
                for (int v = 0; v < vectors; ++v) {
                    V::store(sums + rows.first * stride + v * W, streams[q].a[v]);
                    V::store(sums + rows.second * stride + v * W, streams[q].b[v]);
                }
            }
        }
    }

    using Multiply = void (*)(const float*, const Tile&, const float*, float*);

    template <int... less>
    static Multiply multiply_for(int64_t vectors, std::integer_sequence<int, less...>) {
        static constexpr Multiply table[] = {multiply<less + 1, (less == 0 ? 4 : less < V::two_pairs_to ? 2 : 1)>...};
        return table[vectors - 1];
    }
    static Multiply multiply_for(int64_t vectors) {
        return multiply_for(vectors, std::make_integer_sequence<int, V::panel_vectors>());
    }
};

}  // namespace
}  // namespace vlprune

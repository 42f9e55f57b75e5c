// The scheme of dot products, for bfloat16: tokens on the lanes, and a panel of pairs of inputs.
//
// vdpbf16ps multiplies two neighbours of a lane with two weights and adds both. The two inputs that a row keeps of a
// group are one of six pairs, so the panel holds all six, made once while tokens are packed; a weight pair then takes
// one instruction a register of tokens, its operand from memory, and nothing to choose or shuffle.
//
// Memory, of whole blocks of 96 inputs: 6.2 bytes a kept pair = 0.77 of the dense weight.
#pragma once
#include "intrinsics_avx512.h"
#include "linear24_common.h"
#include "vec_avx512.h"

namespace vlprune {
namespace {

struct Dots {
    using Vector = Vec;
    using Element = uint16_t;
    static constexpr int W = Vec::width;
    static constexpr int panel_vectors = 4;
    static constexpr int chunk_units = 32;  // 512 rows: 128 KB of sums
    static constexpr int stride = W * panel_vectors;
    static constexpr int groups = 24;  // of a block: 36 KB of pairs, of a first-level cache of 48
    static constexpr int inputs = 4 * groups;
    static constexpr int pairs = 6;
    static constexpr int pair_bytes = stride * static_cast<int>(sizeof(float));
    static constexpr int block_floats = groups * pairs * stride;
    static_assert(groups * pairs * pair_bytes <= 65536, "offsets have 16 bits");

    // Four rows, which are computed together: their weight pairs group by group, and where the inputs' pairs are in
    // the panel, the first row's lowest.
    static constexpr int quad_rows = 4;
    struct Quad {
        uint32_t values[groups][quad_rows];
        uint64_t offsets[groups];
    };
    // `groups` is behind the quads, so that what is read ahead of the last one's offsets is of the tile.
    struct alignas(64) Tile {
        Quad quads[W / quad_rows];
        int64_t groups;
    };
    static_assert(sizeof(Tile) >= sizeof(Tile::quads) + 3 * sizeof(uint64_t), "three words are read ahead");

    static int64_t bytes(int64_t out, int64_t in) {
        return ceil_div(out, W) * ceil_div(in, inputs) * static_cast<int64_t>(sizeof(Tile));
    }

    // Pairs in the order in which the panel holds them: (0, 1) (0, 2) (0, 3) (1, 2) (1, 3) (2, 3).
    static int pair_of(int low, int high) { return low == 0 ? high - 1 : low + high; }

    static void fill(const void* packed_values, const uint8_t* meta, int64_t out, int64_t in, void* prepared) {
        const auto* values = static_cast<const uint16_t*>(packed_values);
        auto* tile = static_cast<Tile*>(prepared);
        std::memset(prepared, 0, static_cast<size_t>(bytes(out, in)));
        for (int64_t input = 0; input < in; input += inputs)
            for (int64_t first = 0; first < out; first += W, ++tile) {
                tile->groups = least(groups, (in - input) / 4);
                const int rows = static_cast<int>(least(W, out - first));
                for (int row = 0; row < rows; ++row) {
                    const int64_t o = first + row;
                    fill_row(values + (o * in + input) / 2, meta + o * ceil_div(in, 8) + input / 8, *tile, row);
                }
            }
    }

    static void fill_row(const uint16_t* values, const uint8_t* meta, Tile& tile, int row) {
        Quad& quad = tile.quads[row / quad_rows];
        for (int g = 0; g < tile.groups; ++g, values += 2) {
            const int nibble = meta_nibble(meta, g), one = low_of(nibble), other = high_of(nibble);
            const bool turned = one > other;
            const int pair = turned ? pair_of(other, one) : pair_of(one, other);
            quad.values[g][row % quad_rows] = uint32_t(values[turned]) | uint32_t(values[!turned]) << 16;
            quad.offsets[g] |= uint64_t((g * pairs + pair) * pair_bytes) << row % quad_rows * 16;
        }
    }

    // Two inputs of W tokens; zeros past the last.
    static __m512 load_words(const uint16_t* row, int64_t input, int64_t in) {
        if (input + 2 * W <= in) return _mm512_castsi512_ps(_mm512_loadu_si512(row + input));
        uint16_t rest[2 * W] = {};
        std::memcpy(rest, row + input, sizeof(uint16_t) * static_cast<size_t>(in - input));
        return _mm512_castsi512_ps(_mm512_loadu_si512(rest));
    }

    static void pack_strip(const Linear24& p, const uint16_t* const (&rows)[W], float* to) {
        constexpr __mmask32 high = 0xaaaaaaaa;
        for (int64_t input = 0; input < p.in; input += 2 * W) {
            __m512 words[W];
            for (int t = 0; t < W; ++t) words[t] = load_words(rows[t], input, p.in);
            Vec::transpose(words);
            const int64_t count = least(2 * W, p.in - input) / 2;
            for (int64_t word = 0; word < count; word += 2, to += pairs * stride) {
                const __m512i x01 = _mm512_castps_si512(words[word]), x23 = _mm512_castps_si512(words[word + 1]);
                const __m512i x1 = _mm512_srli_epi32(x01, 16), x_2 = _mm512_slli_epi32(x23, 16);
                const __m512i made[pairs] = {x01, _mm512_mask_blend_epi16(high, x01, x_2),
                                             _mm512_mask_blend_epi16(high, x01, x23), _mm512_or_si512(x1, x_2),
                                             _mm512_mask_blend_epi16(high, x1, x23), x23};
                for (int i = 0; i < pairs; ++i) _mm512_storeu_si512(to + i * stride, made[i]);
            }
        }
    }

    // With its operand from memory: GCC 12 does not fold the load into the intrinsic, and a load of its own is one more
    // operation for every dot.
    static void add_dot(__m512& sum, __m512 weight, const char* x) {
#ifdef VLPRUNE_EMULATE_AVX512
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(weight), (__m512bh)_mm512_loadu_si512(x));
#else
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weight), "m"(*reinterpret_cast<const __m512i*>(x)));
#endif
    }

    // A quad on its way through a block.
    template <int vectors>
    struct Stream {
        const uint32_t* values;
        const uint64_t* offsets;
        uint64_t ahead[3];  // words of offsets: a load whose address comes late costs more than its turn
        __m512 sum[quad_rows][vectors];

        uint64_t next_word() {
            const uint64_t word = ahead[0];
            ahead[0] = ahead[1], ahead[1] = ahead[2], ahead[2] = Vec::load_word(offsets++);
            return word;
        }

        template <int row>
        void add(const char* panel, uint64_t& word, __m512 quad) {
            const char* x = panel + (word & 0xffff);
            word >>= 16;
            const __m512 weight = Vec::lane4<row>(quad);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v)
                add_dot(sum[row][v], weight, x + v * 64);
        }

        void add(const char* panel) {
            uint64_t word = next_word();
            const __m512 quad = Vec::from_bits(Vec::broadcast4_bits(values));
            values += quad_rows;
            add<0>(panel, word, quad);
            add<1>(panel, word, quad);
            add<2>(panel, word, quad);
            add<3>(panel, word, quad);
        }
    };

    // Of few vectors two quads at a time, so that enough sums are in flight to cover the latency.
    template <int vectors, int together>
    static void multiply(const float* panel, const Tile& tile, const float* start, float* sums) {
        constexpr int together_rows = together * quad_rows;
        const char* base = reinterpret_cast<const char*>(panel);
        for (int q = 0; q < W / quad_rows; q += together, sums += together_rows * stride) {
            Stream<vectors> streams[together];
#pragma GCC unroll 2
            for (int s = 0; s < together; ++s) {
                Stream<vectors>& stream = streams[s];
                const Quad& quad = tile.quads[q + s];
                stream.values = quad.values[0];
                stream.offsets = quad.offsets;
                for (uint64_t& word : stream.ahead) word = Vec::load_word(stream.offsets++);
#pragma GCC unroll 4
                for (int row = 0; row < quad_rows; ++row)
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v)
                        stream.sum[row][v] = start ? Vec::set1(start[(q + s) * quad_rows + row])
                                                   : Vec::load(sums + (s * quad_rows + row) * stride + v * W);
                Vec::prefetch_stream<sizeof(Quad), 2 * sizeof(Quad)>(&quad);
            }
            for (int64_t g = 0; g < tile.groups; ++g)
#pragma GCC unroll 2
                for (int s = 0; s < together; ++s) streams[s].add(base);
#pragma GCC unroll 2
            for (int s = 0; s < together; ++s)
#pragma GCC unroll 4
                for (int row = 0; row < quad_rows; ++row)
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v)
                        Vec::store(sums + (s * quad_rows + row) * stride + v * W, streams[s].sum[row][v]);
        }
    }

    using Multiply = void (*)(const float*, const Tile&, const float*, float*);
    static Multiply multiply_for(int64_t vectors) {
        static constexpr Multiply table[] = {multiply<1, 2>, multiply<2, 2>, multiply<3, 1>, multiply<4, 1>};
        return table[vectors - 1];
    }
};

}  // namespace
}  // namespace vlprune

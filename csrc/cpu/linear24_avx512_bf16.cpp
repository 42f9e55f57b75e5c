// linear24 in bfloat16 with the dot-product instruction: for many tokens linear24_avx512_dots.h, for few outputs on
// the lanes.
//
// A group of four inputs is 64 bits. It is broadcast to every 64 bits of a register, one byte shuffle picks
// two inputs for each 32-bit lane, and vdpbf16ps multiplies them by the two kept values of that lane's output.
// The shuffle's control is looked up, in a register, by the group's 4-bit meta.
#include <cstring>

#include "intrinsics_avx512.h"
#include "linear24_activation.h"
#include "linear24_avx512_dots.h"
#include "linear24_panel.h"
#include "linear24_steps.h"
#include "vec_avx512.h"

namespace vlprune {
namespace {

constexpr int tile_rows = Vec::width;
// Twelve token registers hide the dot's latency; longer runs of tokens share a tile's weights.
constexpr int token_registers = 12;
constexpr int64_t run_steps = 32;                      // 1024 inputs: 18 KB of weights stay in the first-level cache
constexpr int64_t resident_bytes = int64_t(384) * 1024;  // of x, in the second-level cache

using Weight = Step<Vec, uint16_t>;

// By the 4-bit meta: the bytes of the two picked bfloat16 inputs within 64 bits.
__m512i shuffle_controls() {
    uint32_t control[16];
    for (uint32_t nibble = 0; nibble < 16; ++nibble) {
        const uint32_t low = 2 * (nibble & 3), high = 2 * (nibble >> 2);
        control[nibble] = low | (low + 1) << 8 | high << 16 | (high + 1) << 24;
    }
    return _mm512_loadu_si512(control);
}

// The loop of twelve tokens has 45 instructions a group and no spills (GCC 12).
template <int tokens>
void multiply(const uint16_t* x, int64_t ldx, const Weight* step, int64_t groups, const float* start,
              int64_t start_stride, float* sums) {
    const __m512i controls = shuffle_controls();
    __m512 sum[tokens];
    for (int t = 0; t < tokens; ++t) sum[t] = _mm512_loadu_ps(start + t * start_stride);
    for (; groups > 0; groups -= step_groups, ++step) {
        Vec::prefetch_stream<sizeof(Weight), 2 * sizeof(Weight)>(step);
        const int count = static_cast<int>(least(step_groups, groups));
        __m512i meta = _mm512_loadu_si512(step->picks);
        for (int g = 0; g < count; ++g, x += 4) {
            const __m512i control = _mm512_permutexvar_epi32(meta, controls);
            const __m512bh values = (__m512bh)_mm512_loadu_si512(step->values[g]);
            meta = _mm512_srli_epi32(meta, 4);
            for (int t = 0; t < tokens; ++t) {
                int64_t group;
                std::memcpy(&group, x + t * ldx, sizeof group);
                const __m512i picked = _mm512_shuffle_epi8(_mm512_set1_epi64(group), control);
                sum[t] = _mm512_dpbf16_ps(sum[t], (__m512bh)picked, values);
            }
        }
    }
    for (int t = 0; t < tokens; ++t) _mm512_storeu_ps(sums + t * tile_rows, sum[t]);
}

using Multiply = void (*)(const uint16_t*, int64_t, const Weight*, int64_t, const float*, int64_t, float*);
constexpr Multiply multiply_for[] = {
    nullptr,     multiply<1>, multiply<2>, multiply<3>, multiply<4>,  multiply<5>,  multiply<6>,
    multiply<7>, multiply<8>, multiply<9>, multiply<10>, multiply<11>, multiply<12>,
};

void run_tile(const Linear24& p, int64_t token, int64_t tokens, int64_t tile, float* sums) {
    const int64_t steps = Weight::in_row_tile(p.in);
    const auto* weights = static_cast<const Weight*>(p.prepared) + tile * steps;
    const auto* x = static_cast<const uint16_t*>(p.x) + token * p.ldx;
    float bias[tile_rows];
    load_bias<Vec, uint16_t>(p.bias, tile * tile_rows, p.out, bias);
    const int64_t splits = ceil_div(tokens, token_registers);
    for (int64_t k = 0; k < steps; k += run_steps) {
        const int64_t groups = least(run_steps * step_groups, p.in / 4 - k * step_groups);
        for (int64_t s = 0; s < splits; ++s) {
            const int64_t t = tokens * s / splits, count = tokens * (s + 1) / splits - t;
            multiply_for[count](x + t * p.ldx + k * step_inputs, p.ldx, weights + k, groups,
                                k == 0 ? bias : sums + t * tile_rows, k == 0 ? 0 : tile_rows, sums + t * tile_rows);
        }
    }
    const int64_t at = token * p.out + tile * tile_rows, rows = least(tile_rows, p.out - tile * tile_rows);
    for (int64_t t = 0; t < tokens; ++t)
        store_outputs<Vec, uint16_t>(p, at + t * p.out, rows,
                                     activate<Vec>(Vec::load(sums + t * tile_rows), p.activation));
}

// A unit of work is one row tile for a run of tokens that fits the cache.
void run(const Linear24& p, int part, int parts) {
    const int64_t tiles = ceil_div(p.out, tile_rows);
    int64_t resident = resident_bytes / (p.in * int64_t(sizeof(uint16_t)));
    resident = most(token_registers, resident / token_registers * token_registers);
    int64_t runs = ceil_div(p.tokens, resident);
    runs = most(runs, least(p.tokens, ceil_div(parts, tiles)));
    auto* sums = static_cast<float*>(
        linear24_workspace(static_cast<size_t>(ceil_div(p.tokens, runs) * tile_rows) * sizeof(float)));
    for (int64_t at; (at = claim(p, runs * tiles, part, parts)) >= 0;) {
        const int64_t r = at / tiles, token = p.tokens * r / runs;
        run_tile(p, token, p.tokens * (r + 1) / runs - token, at % tiles, sums);
    }
}

}  // namespace

const Linear24Variant linear24_avx512_bf16_dot = {
    {Dots::bytes, Dots::fill, Panel<Dots>::run},
    {Weight::bytes, Weight::fill, run},
    52,  // measured on Zen 5 with weights that come from memory
};

}  // namespace vlprune

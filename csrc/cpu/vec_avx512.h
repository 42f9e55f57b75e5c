#pragma once
#include <cstdint>

#include "intrinsics_avx512.h"

namespace vlprune {
namespace {

struct Vec {
    static constexpr int width = 16;
    static constexpr int panel_vectors = 8;
    static constexpr int panel_padding = 16;
    static constexpr int panel_inputs = 64;
    static constexpr int chunk_units = 32;  // 512 rows: 288 KB of sums
    static constexpr bool reads_ahead = true;
    static constexpr bool prefetches_few = true;
    static constexpr int two_pairs_to = 4;  // vectors
    // From this many tokens on they go on the lanes, which is then no slower on Zen 5.
    static constexpr int panel_from = 21;

    using reg = __m512;
    using ireg = __m512i;

    static reg set1(float f) { return _mm512_set1_ps(f); }
    static reg load(const float* p) { return _mm512_loadu_ps(p); }
    static reg load(const uint16_t* p) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    // Loaded once, however often it is used: GCC would give each multiply-add the memory as its operand.
    static reg in_register(reg a) {
#ifndef VLPRUNE_EMULATE_AVX512
        __asm__("" : "+v"(a));
#endif
        return a;
    }
    static void accumulate(reg& sum, reg a, reg b) { sum = _mm512_fmadd_ps(a, b, sum); }
    static void place_loops() {}
    // By way of a vector register, and Zen 5 is 3 % faster than with a load of its own.
    static uint64_t load_word(const uint64_t* p) {
        __m128i word = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
#ifndef VLPRUNE_EMULATE_AVX512
        __asm__("" : "+v"(word));
#endif
        return static_cast<uint64_t>(_mm_cvtsi128_si64(word));
    }
    static void store(float* p, reg a) { _mm512_storeu_ps(p, a); }
    static void store(uint16_t* p, reg a) {
        const __m512i u = _mm512_castps_si512(a);
        const __m512i high = _mm512_srli_epi32(u, 16);
        const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        const __m512i rounded =
            _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
        const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
        const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
        const __m512i words = _mm512_mask_mov_epi32(rounded, nan, quiet);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(words));
    }
    static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
    static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
    static reg sub(reg a, reg b) { return _mm512_sub_ps(a, b); }
    static reg mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
    static reg div(reg a, reg b) { return _mm512_div_ps(a, b); }
    // If one operand is NaN, both give the second.
    static reg min(reg a, reg b) { return _mm512_min_ps(a, b); }
    static reg max(reg a, reg b) { return _mm512_max_ps(a, b); }
    static reg abs(reg a) { return _mm512_abs_ps(a); }
    static reg round(reg a) { return _mm512_cvtepi32_ps(_mm512_cvtps_epi32(a)); }
    static reg exp2_whole(reg a) {
        const __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
        return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
    }

    static reg broadcast4(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
    static reg pick(reg a, ireg choice) { return _mm512_permutevar_ps(a, choice); }
    static ireg load_bits(const void* p) { return _mm512_loadu_si512(p); }
    static ireg broadcast4_bits(const void* p) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    }
    static reg from_bits(ireg a) { return _mm512_castsi512_ps(a); }
    template <int lane>
    static reg lane4(reg a) {
        return _mm512_permute_ps(a, lane * 0x55);
    }
    template <int bits>
    static ireg shift_left(ireg a) {
        return _mm512_slli_epi32(a, bits);
    }
    template <int bits>
    static ireg shift_right(ireg a) {
        return _mm512_srli_epi32(a, bits);
    }
    static reg high_half(ireg a) {
        return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    static void transpose(reg (&a)[width]) {
        reg b[width];
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
        }
        // Now 4x4 blocks inside 128-bit lanes ...
        for (int i = 0; i < 16; i += 4) {
            a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
            a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
            a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
            a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
        }
        // ... and the 4x4 blocks themselves.
        for (int i = 0; i < 4; ++i) {
            b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x44);
            b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xee);
            b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x44);
            b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            a[i] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88);
            a[i + 4] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd);
            a[i + 8] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88);
            a[i + 12] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xdd);
        }
    }
    static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
    // Of a weight that is read once, in order: what comes next `near` bytes ahead, and what comes from memory so far
    // ahead that it is there in time, into the second-level cache.
    template <size_t bytes, size_t near>
    static void prefetch_stream(const void* at) {
        constexpr size_t far = 8192;
        for (size_t line = 0; line < bytes; line += 64) {
            const uintptr_t from = reinterpret_cast<uintptr_t>(at) + line;
            _mm_prefetch(reinterpret_cast<const char*>(from + near), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(from + far), _MM_HINT_T1);
        }
    }
    static void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1, 3); }
};

}  // namespace
}  // namespace vlprune

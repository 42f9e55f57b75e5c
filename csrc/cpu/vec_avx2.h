#pragma once
#include <immintrin.h>

#include <cstdint>

namespace vlprune {
namespace {

struct Vec {
    static constexpr int width = 8;
    static constexpr int panel_vectors = 6;
    static constexpr int panel_padding = 0;
    static constexpr int panel_inputs = 128;
    static constexpr int chunk_units = 64;  // 1024 rows: 196 KB of sums
    static constexpr bool reads_ahead = false;
    // Whether a weight for few tokens is asked for ahead; with AVX2 that was not worth its instructions.
    static constexpr bool prefetches_few = false;
    static constexpr int two_pairs_to = 2;  // vectors: with three the registers are too few
    // From this many tokens on they go on the lanes: of 12 to 20, fewer are faster the other way (Zen 3, float32).
    static constexpr int panel_from = 14;

    using reg = __m256;
    using ireg = __m256i;

    static reg set1(float f) { return _mm256_set1_ps(f); }
    static reg load(const float* p) { return _mm256_loadu_ps(p); }
    static reg load(const uint16_t* p) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    // Loaded once, however often it is used: GCC would give each multiply-add the memory as its operand.
    static reg in_register(reg a) {
        __asm__("" : "+x"(a));
        return a;
    }
    // sum += a * b, the sum where it was: where all registers are taken, GCC would move sums about and spill some.
    static void accumulate(reg& sum, reg a, reg b) { __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b)); }
    // Before the loops of the product, in a function that starts on a line of 64 bytes. Where these loops begin and end
    // in such lines moves Zen 3 by 8 %; of eight places this is the best for what GCC 12 makes of them.
    static void place_loops() { __asm__ volatile(".skip 32, 0x90"); }
    static void store(float* p, reg a) { _mm256_storeu_ps(p, a); }
    static void store(uint16_t* p, reg a) {
        const __m256i u = _mm256_castps_si256(a);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
        const __m256i rounded =
            _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
        const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
        const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    }
    static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
    static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
    static reg sub(reg a, reg b) { return _mm256_sub_ps(a, b); }
    static reg mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
    static reg div(reg a, reg b) { return _mm256_div_ps(a, b); }
    // If one operand is NaN, both give the second.
    static reg min(reg a, reg b) { return _mm256_min_ps(a, b); }
    static reg max(reg a, reg b) { return _mm256_max_ps(a, b); }
    static reg abs(reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
    static reg round(reg a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static reg exp2_whole(reg a) {
        const __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
    }

    static reg broadcast4(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
    static reg pick(reg a, ireg choice) { return _mm256_permutevar_ps(a, choice); }
    static ireg load_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static ireg broadcast4_bits(const void* p) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    }
    static reg from_bits(ireg a) { return _mm256_castsi256_ps(a); }
    template <int lane>
    static reg lane4(reg a) {
        return _mm256_permute_ps(a, lane * 0x55);
    }
    template <int bits>
    static ireg shift_left(ireg a) {
        return _mm256_slli_epi32(a, bits);
    }
    template <int bits>
    static ireg shift_right(ireg a) {
        return _mm256_srli_epi32(a, bits);
    }
    static reg high_half(ireg a) {
        return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    static void transpose(reg (&a)[width]) {
        reg b[width], c[width];
        for (int i = 0; i < 8; i += 2) {
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            c[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
            c[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
            c[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
            c[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            a[i] = _mm256_permute2f128_ps(c[i], c[i + 4], 0x20);
            a[i + 4] = _mm256_permute2f128_ps(c[i], c[i + 4], 0x31);
        }
    }
    static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
    template <size_t bytes, size_t near>
    static void prefetch_stream(const void* at) {
        const uintptr_t from = reinterpret_cast<uintptr_t>(at) + near;
        for (size_t line = 0; line < bytes; line += 64) prefetch(reinterpret_cast<const void*>(from + line));
    }
    static void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1, 3); }
};

}  // namespace
}  // namespace vlprune

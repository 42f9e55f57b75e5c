// AVX-512 by SIMDe, and the few intrinsics that its version 0.7.4 lacks, lane by lane.
#pragma once
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>

namespace vlprune {
namespace emulated {

struct Floats {
    alignas(64) float v[16];
};
struct Words {
    alignas(64) uint32_t v[16];
};

inline Floats floats(__m512 a) {
    Floats f;
    _mm512_storeu_ps(f.v, a);
    return f;
}
inline Words words(__m512i a) {
    Words w;
    _mm512_storeu_si512(w.v, a);
    return w;
}

template <class F>
__m512 each_float(F f) {
    Floats r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return _mm512_loadu_ps(r.v);
}
template <class F>
__m512i each_word(F f) {
    Words r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return _mm512_loadu_si512(r.v);
}

inline __m512i cvtepu16_epi32(__m256i a) {
    uint16_t half[16];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(half), a);
    return each_word([&](int i) { return uint32_t(half[i]); });
}
inline __m256i cvtepi32_epi16(__m512i a) {
    const Words w = words(a);
    uint16_t half[16];
    for (int i = 0; i < 16; ++i) half[i] = static_cast<uint16_t>(w.v[i]);
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half));
}
inline __m512 cvtepi32_ps(__m512i a) {
    const Words w = words(a);
    return each_float([&](int i) { return static_cast<float>(static_cast<int32_t>(w.v[i])); });
}
inline __m512i cvtps_epi32(__m512 a) {
    const Floats f = floats(a);
    // What does not fit, and NaN, give the "integer indefinite" value.
    return each_word([&](int i) {
        const float whole = std::nearbyint(f.v[i]);
        return std::fabs(whole) < 2147483648.0f ? static_cast<uint32_t>(static_cast<int32_t>(whole)) : 0x80000000u;
    });
}
inline __m512 permute_ps(__m512 a, int choice) {
    const Floats f = floats(a);
    return each_float([&](int i) { return f.v[(i & ~3) | (choice >> 2 * (i & 3) & 3)]; });
}
inline __m512 permutevar_ps(__m512 a, __m512i choice) {
    const Floats f = floats(a);
    const Words w = words(choice);
    return each_float([&](int i) { return f.v[(i & ~3) | static_cast<int>(w.v[i] & 3)]; });
}
inline __m512 shuffle_f32x4(__m512 a, __m512 b, int choice) {
    const Floats f = floats(a), g = floats(b);
    return each_float([&](int i) { return (i < 8 ? f : g).v[(choice >> 2 * (i / 4) & 3) * 4 + i % 4]; });
}

}  // namespace emulated
}  // namespace vlprune

#define _mm512_cvtepu16_epi32 ::vlprune::emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 ::vlprune::emulated::cvtepi32_epi16
#define _mm512_cvtepi32_ps ::vlprune::emulated::cvtepi32_ps
#define _mm512_cvtps_epi32 ::vlprune::emulated::cvtps_epi32
#define _mm512_permute_ps ::vlprune::emulated::permute_ps
#define _mm512_permutevar_ps ::vlprune::emulated::permutevar_ps
#define _mm512_shuffle_f32x4 ::vlprune::emulated::shuffle_f32x4

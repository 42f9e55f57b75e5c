// 16-bit numbers as the kernel and its emulation see them, and the arithmetic of the epilogue in float32.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "codes.h"
#include "cuda/linear24_sm80_meta.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace vlprune::sm80 {

VLPRUNE_HD float float_of_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

struct BFloat16 {
    VLPRUNE_HD static float to_float(uint32_t low_bits) { return float_of_bits(low_bits << 16); }
};

struct Float16 {
    VLPRUNE_HD static float to_float(uint32_t low_bits) {
#ifdef __CUDA_ARCH__
        return __half2float(__ushort_as_half(static_cast<unsigned short>(low_bits)));
#else
        const uint32_t magnitude = low_bits & 0x7fff, sign = (low_bits & 0x8000) << 16;
        if (magnitude >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
        // Seen as a float, the shifted bits are 2^-112 of the value, subnormal or not.
        return float_of_bits(sign | magnitude << 13) * 0x1p112f;
#endif
    }
};

template <class T>
constexpr bool is_bfloat16 = std::is_same_v<T, BFloat16>;

// The low half of a word, and the high.
template <class T>
VLPRUNE_HD float low(uint32_t pair) {
    return T::to_float(pair & 0xffff);
}
template <class T>
VLPRUNE_HD float high(uint32_t pair) {
    return T::to_float(pair >> 16);
}

// Within 2 units in the last place of float32: far below the rounding to 16 bits that follows.
VLPRUNE_HD float reciprocal(float x) {
#ifdef __CUDA_ARCH__
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return 1.0f / x;
#endif
}
VLPRUNE_HD float power_of_2(float x) {
#ifdef __CUDA_ARCH__
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return std::exp2(x);
#endif
}

// x * Phi(x) with Phi(-|x|) = erfc(|x| / sqrt(2)) / 2, and erfc(z) = exp(-z^2) t poly(t), t = 1 / (1 + 0.375 z):
// a minimax fit of relative error 6.4e-7 for 0 <= z <= 9.5. No branch, two special functions; erff costs twice
// as much, which 128 results a thread make felt.
VLPRUNE_HD float gelu(float x) {
    const float t = reciprocal(1.0f + 0.375f * 0.70710678f * std::fabs(x));
    float tail = -0.0675479248f;
    tail = tail * t + 0.193968818f;
    tail = tail * t - 0.0647984892f;
    tail = tail * t + 0.141530633f;
    tail = tail * t + 0.0833323449f;
    tail = tail * t + 0.107844576f;
    tail = tail * t + 0.105669729f;
    tail = tail * t * power_of_2(-0.72134752f * x * x);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// x / (1 + exp(-1.702 x))
VLPRUNE_HD float quick_gelu(float x) { return x * reciprocal(1.0f + power_of_2(-2.45546696f * x)); }

template <Activation A>
VLPRUNE_HD float activated(float x) {
    if constexpr (A == Activation::gelu) return gelu(x);
    if constexpr (A == Activation::quick_gelu) return quick_gelu(x);
    return x;
}

}  // namespace vlprune::sm80

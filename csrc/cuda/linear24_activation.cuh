// GELU and QuickGELU in float32 as one formula, the same on the host, where it is checked against float64.
//
// Both are x * sigmoid(...): two instructions of the special function unit and a few multiply-adds. A product
// over 768 inputs leaves its epilogue about 23 instructions an output before the tensor cores would wait for
// it, and erff alone takes more. The coefficients come from the call, so both share one piece of code.
#pragma once
#include <cmath>

#include "codes.h"

#if defined(__CUDACC__)
#define VLPRUNE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VLPRUNE_HOST_DEVICE inline
#endif

namespace vlprune {

// x / (1 + 2^(x * P(min(x^2, 5.5^2)))), P of degree 6, its highest coefficient first.
struct Gate {
    float coefficients[7];
};

// x * Phi(x) (GELU with erf): log2(Phi(-x) / Phi(x)) / x is fitted so that the largest error of the product is
// smallest for |x| <= 5.5; beyond, the sigmoid has reached its end. The error is at most 6e-7, and 1.1e-7 for
// negative x. QuickGELU, x * sigmoid(1.702 x), has a P that is constant.
VLPRUNE_HOST_DEVICE Gate gate_of(Activation activation) {
    if (activation == Activation::gelu) {
        return {{-5.2101452e-09f, 3.85055614e-07f, -1.14526028e-05f, 0.000159390693f, 9.55886717e-05f,
                 -0.104838572f, -2.30220723f}};
    }
    constexpr float log2_e = 1.4426950408889634f;
    return {{0, 0, 0, 0, 0, 0, -1.702f * log2_e}};
}

VLPRUNE_HOST_DEVICE float gated(float x, const Gate& gate) {
    const float square = x * x < 30.25f ? x * x : 30.25f;
    float p = gate.coefficients[0];
    for (int i = 1; i < 7; ++i) p = p * square + gate.coefficients[i];
#if defined(__CUDA_ARCH__)
    float two_to, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(two_to) : "f"(x * p));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + two_to));
    return x * inverse;
#else
    return x * (1.0f / (1.0f + std::exp2(x * p)));
#endif
}

}  // namespace vlprune

// 16-bit numbers as the kernel and its emulation see them.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

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

}  // namespace vlprune::sm80

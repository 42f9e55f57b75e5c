// head_attention inside: one problem, and the variants that can solve it, as in linear24.h.
#pragma once
#include <cstdint>

namespace vlprune {

struct Attention {
    const float* qkv;  // [batch, length, 3, heads, dim]
    int64_t batch_stride, token_stride;
    int64_t batch, length, heads, dim;
    bool causal;
    float scale;
    float* out;        // [batch, length, heads, dim], contiguous
    int64_t* claimed;  // heads of sequences that some thread has taken, at zero
};

// What one of `parts` threads does of it.
using AttentionVariant = void (*)(const Attention& problem, int parts);

extern const AttentionVariant attention_portable, attention_avx2, attention_avx512;

}  // namespace vlprune

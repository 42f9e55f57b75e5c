// head_attention inside: one problem, and the variants that can solve it, as in linear24.h.
#pragma once
#include <cstdint>

namespace vlprune {

struct Attention {
    const void* qkv;  // [batch, length, 3, heads, dim], float32 or bfloat16
    int64_t batch_stride, token_stride;
    int64_t batch, length, heads, dim;
    bool causal;
    float scale;
    void* out;         // [batch, length, heads, dim] of the same, contiguous
    int64_t* claimed;  // heads of sequences that some thread has taken, at zero
};

// What one of `parts` threads does of it, by dtype.
struct AttentionVariant {
    void (*f32)(const Attention& problem, int parts);
    void (*bf16)(const Attention& problem, int parts);
};

extern const AttentionVariant attention_portable, attention_avx2, attention_avx512;

}  // namespace vlprune

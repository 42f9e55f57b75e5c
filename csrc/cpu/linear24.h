// linear24 inside: one problem, and the variants that can solve it. Only plain data and function
// pointers cross between sources compiled for different instruction sets.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ops.h"

namespace vlprune {

struct Linear24 {
    const void* x;
    int64_t ldx;
    const LayerNorm* norm;  // null: none
    const void* prepared;
    const void* bias;      // null: none
    const void* residual;  // as y, added last; null: none
    int64_t tokens, out, in;
    Activation activation;
    void* y;
    struct Cursor* cursors;  // one a part, all at zero
};

// How far a part's own share of the work units is claimed; on a cache line of its own.
struct alignas(64) Cursor {
    int64_t claimed;
};

// A form of the prepared weight and who computes with it. `run` does share `part` of `parts`; the shares write
// disjoint outputs.
struct Linear24Form {
    int64_t (*prepared_bytes)(int64_t out, int64_t in);
    void (*prepare)(const void* values, const uint8_t* meta, int64_t out, int64_t in, void* prepared);
    void (*run)(const Linear24& problem, int part, int parts);
};

// One instruction set and dtype: a form for many tokens, and one that is faster for fewer than `few_below`.
struct Linear24Variant {
    Linear24Form many, few;
    int few_below;
};

extern const Linear24Variant linear24_portable_f32, linear24_portable_bf16;
extern const Linear24Variant linear24_avx2_f32, linear24_avx2_bf16;
extern const Linear24Variant linear24_avx512_f32, linear24_avx512_bf16;
extern const Linear24Variant linear24_avx512_bf16_dot;

// Memory of this thread, 64-byte aligned, kept from call to call: fresh pages cost more than the product.
void* linear24_workspace(size_t bytes);

}  // namespace vlprune

// masked_update inside: one problem, and the variants that can solve it, as in attention.h.
#pragma once
#include <cstdint>

namespace vlprune {

struct MaskedUpdate {
    const void* weight;   // [rows, cols]
    const float* panels;  // A: for every two vectors of columns [rank, two vectors], zeros behind the last column
    const float* b;       // [rows, rank]
    const uint8_t* keep;  // [rows, cols], or null
    void* out;            // [rows, cols]
    int64_t cols, rank;
};

// Of its gradient: what of a thread's rows goes to A, and to B.
struct MaskedUpdateGradient {
    const void* grad;     // [rows, cols], of the result
    const float* panels;  // A, as above
    const float* b;       // [rows, rank]
    const uint8_t* keep;  // [rows, cols], or null
    float* for_b;         // [rows, rank]
    int64_t cols, rank;
};

// Rows first to last of the result; of the gradient they are added to `for_a`, panels as A's, with `sums` of
// masked_update_sums floats a rank besides.
using MaskedUpdateRows = void (*)(const MaskedUpdate& problem, int64_t first, int64_t last);
using MaskedUpdateGradientRows = void (*)(const MaskedUpdateGradient& problem, int64_t first, int64_t last,
                                          float* for_a, float* sums);

// Floats of sums a rank: four rows of a vector of any instruction set.
constexpr int64_t masked_update_sums = 4 * 16;

struct MaskedUpdateVariant {
    int64_t panel;  // columns
    MaskedUpdateRows f32, bf16;
    MaskedUpdateGradientRows gradient_f32, gradient_bf16;
};

extern const MaskedUpdateVariant masked_update_portable, masked_update_avx2, masked_update_avx512;

// Columns of A that are gone through at once: 128 KB, of the second-level cache.
constexpr int64_t masked_update_strip(int64_t rank, int64_t cols, int64_t panel) {
    const int64_t fitting = rank > 0 ? 32768 / rank / panel * panel : cols;
    return fitting > panel ? fitting : panel;
}

}  // namespace vlprune

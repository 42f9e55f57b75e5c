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

// Rows first to last of the result.
using MaskedUpdateRows = void (*)(const MaskedUpdate& problem, int64_t first, int64_t last);

struct MaskedUpdateVariant {
    int64_t panel;  // columns
    MaskedUpdateRows f32, bf16;
};

extern const MaskedUpdateVariant masked_update_portable, masked_update_avx2, masked_update_avx512;

}  // namespace vlprune

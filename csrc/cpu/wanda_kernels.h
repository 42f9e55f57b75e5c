// The loops of column_sumsq, wanda_mask, wanda_pack24, pack24 and unpack24 over single rows or blocks of
// rows, compiled once per instruction set. They are bound by memory from AVX2 on, so there is no AVX-512 form.
#pragma once
#include <cstdint>

#include "ops.h"

namespace vlprune {

struct RowKernels {
    // acc[j] = sum over `rows` of w_t * x[t, j]^2 in float32; few rows, to keep the sums short.
    void (*sumsq)(const void* x, DType dtype, int64_t rows, int64_t cols, int64_t ld, const float* weight,
                  float* acc);

    // keys[j]: integers ordered like the scores |w_j| * norm_j, equal where those are equal.
    // Returns -1 or the first column whose score is not finite.
    int64_t (*score_keys)(const void* weight, DType dtype, int64_t cols, const float* norm, int32_t* keys);

    // keep[j] = keys[j] > threshold, or equal to it after the first `ties` equal ones; returns the ties left.
    int64_t (*keep_above)(const int32_t* keys, int64_t cols, int32_t threshold, int64_t ties, bool* keep);

    // wanda_mask of one row (group <= cols); `keys` is scratch of `cols`. Returns like score_keys.
    int64_t (*mask)(const void* weight, DType dtype, int64_t cols, const float* norm, int64_t group,
                    int64_t prune, int32_t* keys, bool* keep);

    // One row of wanda_pack24 (returns like score_keys) and of pack24 (-1 or the first crowded group).
    int64_t (*wanda_pack)(const void* weight, DType dtype, int64_t cols, const float* norm, void* values,
                          uint8_t* meta);
    int64_t (*pack)(const void* weight, DType dtype, int64_t cols, void* values, uint8_t* meta);

    void (*unpack)(const void* values, const uint8_t* meta, DType dtype, int64_t cols, void* weight);
};

extern const RowKernels kRowKernelsPortable;
extern const RowKernels kRowKernelsAvx2;

const RowKernels& row_kernels(Isa isa);

}  // namespace vlprune

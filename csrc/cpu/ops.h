// The CPU operators, free of torch: plain pointers, sizes and strides in elements.
// Each takes the instruction set to use, so that every variant can be tested on any machine that has it.
#pragma once
#include <cstdint>

#include "codes.h"

namespace vlprune {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

// Best instruction set of this machine, and whether a given one can run here.
Isa best_isa();
bool isa_runs(Isa isa);

// out[j] = sum_t w_t * x[t, j]^2, float32. `weight` may be null (all ones). `ld` is x's row stride.
void column_sumsq(const void* x, DType dtype, int64_t rows, int64_t cols, int64_t ld,
                  const float* weight, float* out, int threads, Isa isa);

// Keep mask of the scores |w| * norm: prune the `prune` lowest of each group of `group` consecutive
// inputs (n:m), of each row (group == cols) or of the whole matrix (group == 0). Ties: the lowest
// index goes first. Returns -1, or the flat index of the first score that is not finite.
int64_t wanda_mask(const void* weight, DType dtype, int64_t rows, int64_t cols, const float* norm,
                   int64_t group, int64_t prune, bool* keep, int threads, Isa isa);

// The packed 2:4 form (DESIGN: values [rows, cols/2], meta [rows, ceil(cols/8)]) of the Wanda-2:4-pruned
// weight, one pass over it. Returns like wanda_mask.
int64_t wanda_pack24(const void* weight, DType dtype, int64_t rows, int64_t cols, const float* norm,
                     void* values, uint8_t* meta, int threads, Isa isa);

// Dense with zeros -> packed; returns -1, or row * (cols/4) + group of the first group with more than
// two non-zeros (then the outputs are unspecified).
int64_t pack24(const void* weight, DType dtype, int64_t rows, int64_t cols, void* values, uint8_t* meta,
               int threads, Isa isa);
void unpack24(const void* values, const uint8_t* meta, DType dtype, int64_t rows, int64_t cols,
              void* weight, int threads, Isa isa);

// linear24 works on a private re-ordering of (values, meta), made once by linear24_prepare into a 64-byte-aligned
// buffer of linear24_prepared_bytes. It depends on dtype and isa, and on whether it is for few tokens: any number can
// be computed with either form, but fewer than linear24_few_below are faster with the one for few. `linear24` is told
// which form it is given: dtype, few and isa are those that it was prepared with.
int linear24_few_below(DType dtype, Isa isa);
int64_t linear24_prepared_bytes(DType dtype, int64_t out, int64_t in, bool few, Isa isa);
void linear24_prepare(const void* values, const uint8_t* meta, DType dtype, int64_t out, int64_t in, bool few,
                      void* prepared, Isa isa);

// Of every row of x: (x - mean) / sqrt(variance + eps) * weight + bias, [in] each.
struct LayerNorm {
    const float* weight;
    const float* bias;
    float eps;
};

// y[t, o] = act(sum_i x[t, i] W[o, i] + bias[o]) + residual[t, o]; x [tokens, in] with row stride ldx, y and
// residual contiguous [tokens, out]; all of `dtype`, bias and residual may be null; float32 accumulation, and y
// rounded once. `norm`, if not null, is applied to x before: float32 alone, and the form for many tokens alone.
void linear24(const void* x, int64_t ldx, const LayerNorm* norm, const void* prepared, bool few, const void* bias,
              const void* residual, DType dtype, int64_t tokens, int64_t out, int64_t in, Activation act, void* y,
              int threads, Isa isa);

// out[b, s, h, :] = softmax over the tokens t that s may see of (scale * q[b, s, h] . k[b, t, h]), times v[b, t, h].
// qkv [batch, length, 3, heads, dim], float32 or bfloat16, with strides of sequences and tokens, out [batch, length,
// heads, dim] contiguous; computed in float32. Every sequence's keys are kept near: for up to a few hundred tokens.
void head_attention(const void* qkv, DType dtype, int64_t batch_stride, int64_t token_stride, int64_t batch,
                    int64_t length, int64_t heads, int64_t dim, bool causal, float scale, void* out, int threads,
                    Isa isa);

// out = (W + B A) * M: weight and out [rows, cols] of `dtype` (float32 or bfloat16), a [rank, cols] and b [rows, rank]
// float32, keep [rows, cols] or null. Summed in float32 and rounded once. What is not kept is +0.0 whatever the weight.
// `out` may be `weight`; with rank 0 this is the mask alone.
void masked_update(const void* weight, DType dtype, int64_t rows, int64_t cols, const float* a, const float* b,
                   int64_t rank, const bool* keep, void* out, int threads, Isa isa);

// Its gradients for that of the result, [rows, cols] of `dtype`: for_a = B^T (grad * M) [rank, cols] and
// for_b = (grad * M) A^T [rows, rank]. The last bits of for_a depend on the number of threads.
void masked_update_backward(const void* grad, DType dtype, int64_t rows, int64_t cols, const float* a, const float* b,
                            int64_t rank, const bool* keep, float* for_a, float* for_b, int threads, Isa isa);

}  // namespace vlprune

// The row kernels of one instruction set. Included by wanda_kernels_<isa>.cpp, which defines VLPRUNE_VARIANT:
// all of it lives in a namespace of that name, so that no two variants share a function.
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "wanda_kernels.h"

namespace vlprune {
namespace VLPRUNE_VARIANT {
namespace {

#include "wanda_elements.inl"
#include "wanda_select.inl"
#include "wanda_groups4.inl"
#include "wanda_groups.inl"
// These build on the ones above.
#include "column_sumsq_rows.inl"
#include "pack24_rows.inl"

template <class T>
int64_t mask(const T* weight, int64_t cols, const float* norm, int64_t group, int64_t prune, int32_t* keys,
             bool* keep) {
    int64_t done = 0;
#if defined(__AVX2__)
    done = keep_groups8(weight, cols, norm, group, prune, keep);
#endif
    const int64_t wrong = score_keys(weight + done, cols - done, norm + done, keys);
    if (wrong >= 0) return done + wrong;
    keep_groups(keys, cols - done, group, prune, keep + done);
    return -1;
}

}  // namespace
}  // namespace VLPRUNE_VARIANT

using namespace VLPRUNE_VARIANT;

extern const RowKernels VLPRUNE_KERNELS = {
    [](const void* x, DType dtype, int64_t rows, int64_t cols, int64_t ld, const float* weight, float* acc) {
        with_elements(dtype, x, [&](const auto* p) { sumsq(p, rows, cols, ld, weight, acc); });
    },
    [](const void* weight, DType dtype, int64_t cols, const float* norm, int32_t* keys) {
        return with_elements(dtype, weight, [&](const auto* p) { return score_keys(p, cols, norm, keys); });
    },
    keep_above,
    [](const void* weight, DType dtype, int64_t cols, const float* norm, int64_t group, int64_t prune,
       int32_t* keys, bool* keep) {
        return with_elements(dtype, weight,
                             [&](const auto* p) { return mask(p, cols, norm, group, prune, keys, keep); });
    },
    [](const void* weight, DType dtype, int64_t cols, const float* norm, void* values, uint8_t* meta) {
        return with_elements(dtype, weight, [&](const auto* p) {
            return wanda_pack(p, cols, norm, storage_like(p, values), meta);
        });
    },
    [](const void* weight, DType dtype, int64_t cols, void* values, uint8_t* meta) {
        return with_elements(dtype, weight,
                             [&](const auto* p) { return pack(p, cols, storage_like(p, values), meta); });
    },
    [](const void* values, const uint8_t* meta, DType dtype, int64_t cols, void* weight) {
        with_elements(dtype, values, [&](const auto* p) { unpack(p, meta, cols, storage_like(p, weight)); });
    },
};

}  // namespace vlprune

#include "ops.h"
#include "wanda_kernels.h"
#include "wanda_rows.h"

namespace vlprune {

int64_t pack24(const void* weight, DType dtype, int64_t rows, int64_t cols, void* values, uint8_t* meta, int threads,
               Isa isa) {
    const RowKernels& kernels = row_kernels(isa);
    const int64_t bytes = cols * item_size(dtype);
    return for_rows(rows, cols / 4, row_parts(rows, cols, threads), [&](int, int64_t row) {
        return kernels.pack(static_cast<const char*>(weight) + row * bytes, dtype, cols,
                            static_cast<char*>(values) + row * (bytes / 2), meta + row * ((cols + 7) / 8));
    });
}

void unpack24(const void* values, const uint8_t* meta, DType dtype, int64_t rows, int64_t cols, void* weight,
              int threads, Isa isa) {
    const RowKernels& kernels = row_kernels(isa);
    const int64_t bytes = cols * item_size(dtype);
    for_rows(rows, cols / 4, row_parts(rows, cols, threads), [&](int, int64_t row) {
        kernels.unpack(static_cast<const char*>(values) + row * (bytes / 2), meta + row * ((cols + 7) / 8), dtype,
                       cols, static_cast<char*>(weight) + row * bytes);
        return int64_t{-1};
    });
}

}  // namespace vlprune

#include <algorithm>
#include <vector>

#include "ops.h"
#include "parallel.h"
#include "wanda_kernels.h"

namespace vlprune {
namespace {

// Rows added up in float32 before they go to a double: short sums stay exact to a few units in the last place.
constexpr int64_t kBlock = 256;
// The split into segments depends on the rows alone, so the result does not depend on the thread count.
constexpr int64_t kSegments = 64;

}  // namespace

void column_sumsq(const void* x, DType dtype, int64_t rows, int64_t cols, int64_t ld, const float* weight,
                  float* out, int threads, Isa isa) {
    const RowKernels& kernels = row_kernels(isa);
    const int64_t blocks = (rows + kBlock - 1) / kBlock;
    const int64_t segments = std::min(blocks, kSegments);
    std::vector<double> totals(static_cast<size_t>(segments * cols));
    const int64_t item = dtype == DType::f32 ? 4 : 2;
    const int parts = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(segments, 1)));
    std::vector<float> scratch(static_cast<size_t>(parts * cols));
    parallel_parts(parts, [&](int part, int count) {
        float* const acc = scratch.data() + part * cols;
        for (int64_t segment = part; segment < segments; segment += count) {
            double* const total = totals.data() + segment * cols;
            for (int64_t block = segment * blocks / segments; block < (segment + 1) * blocks / segments; ++block) {
                const int64_t first = block * kBlock;
                kernels.sumsq(static_cast<const char*>(x) + first * ld * item, dtype,
                              std::min(kBlock, rows - first), cols, ld, weight ? weight + first : nullptr, acc);
                for (int64_t j = 0; j < cols; ++j) total[j] += static_cast<double>(acc[j]);
            }
        }
    });
    for (int64_t j = 0; j < cols; ++j) {
        double sum = 0.0;
        for (int64_t segment = 0; segment < segments; ++segment) sum += totals[static_cast<size_t>(segment * cols + j)];
        out[j] = static_cast<float>(sum);
    }
}

}  // namespace vlprune

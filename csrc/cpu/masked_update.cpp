#include "masked_update.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "ops.h"
#include "parallel.h"
#include "wanda_rows.h"

namespace vlprune {
namespace {

// Rows of the gradient that a part has at least: clearing and adding up its own sums for A costs as much as a few.
constexpr int64_t rows_a_part = 64;

const MaskedUpdateVariant& variant(DType dtype, Isa isa) {
    if (dtype == DType::f16) throw std::invalid_argument("masked_update: float16 is not computed natively on the CPU");
    if (!isa_runs(isa))
        throw std::invalid_argument("masked_update: this machine cannot run the instruction set asked for");
    switch (isa) {
#ifdef VLPRUNE_HAVE_AVX2
        case Isa::avx2:
            return masked_update_avx2;
#endif
#ifdef VLPRUNE_HAVE_AVX512
        case Isa::avx512:
        case Isa::avx512_bf16:
            return masked_update_avx512;
#endif
        default:
            return masked_update_portable;
    }
}

std::vector<float> panels_of(const float* a, int64_t rank, int64_t cols, int64_t panel) {
    std::vector<float> panels(static_cast<size_t>((cols + panel - 1) / panel * panel * rank));
    float* to = panels.data();
    for (int64_t j = 0; j < cols; j += panel)
        for (int64_t k = 0; k < rank; ++k, to += panel)
            std::memcpy(to, a + k * cols + j, sizeof(float) * static_cast<size_t>(std::min(panel, cols - j)));
    return panels;
}

}  // namespace

void masked_update(const void* weight, DType dtype, int64_t rows, int64_t cols, const float* a, const float* b,
                   int64_t rank, const bool* keep, void* out, int threads, Isa isa) {
    const MaskedUpdateVariant& chosen = variant(dtype, isa);
    if (rows == 0 || cols == 0) return;
    const std::vector<float> panels = panels_of(a, rank, cols, chosen.panel);
    const MaskedUpdate problem{weight, panels.data(), b, reinterpret_cast<const uint8_t*>(keep), out, cols, rank};
    const MaskedUpdateRows run = dtype == DType::f32 ? chosen.f32 : chosen.bf16;
    parallel_parts(row_parts(rows, cols, threads),
                   [&](int part, int parts) { run(problem, rows * part / parts, rows * (part + 1) / parts); });
}

void masked_update_backward(const void* grad, DType dtype, int64_t rows, int64_t cols, const float* a, const float* b,
                            int64_t rank, const bool* keep, float* for_a, float* for_b, int threads, Isa isa) {
    const MaskedUpdateVariant& chosen = variant(dtype, isa);
    if (cols == 0) std::fill_n(for_b, rows * rank, 0.0f);
    const std::vector<float> panels = panels_of(a, rank, cols, chosen.panel);
    const MaskedUpdateGradient problem{grad, panels.data(), b,   reinterpret_cast<const uint8_t*>(keep),
                                       for_b, cols,         rank};
    const MaskedUpdateGradientRows run = dtype == DType::f32 ? chosen.gradient_f32 : chosen.gradient_bf16;
    const int parts = static_cast<int>(std::clamp<int64_t>(rows / rows_a_part, 1, row_parts(rows, cols, threads)));
    const size_t own = panels.size() + static_cast<size_t>(rank * masked_update_sums);
    const std::unique_ptr<float[]> shares(new float[own * static_cast<size_t>(parts)]);
    parallel_parts(parts, [&](int part, int count) {
        float* share = shares.get() + own * static_cast<size_t>(part);
        std::fill_n(share, panels.size(), 0.0f);
        run(problem, rows * part / count, rows * (part + 1) / count, share, share + panels.size());
    });
    const int64_t columns = chosen.panel, many = (cols + columns - 1) / columns;
    parallel_parts(static_cast<int>(std::min<int64_t>(parts, many)), [&](int part, int count) {
        for (int64_t index = many * part / count; index < many * (part + 1) / count; ++index) {
            float* sum = shares.get() + index * columns * rank;
            for (int other = 1; other < parts; ++other) {
                const float* share = sum + own * static_cast<size_t>(other);
                for (int64_t i = 0; i < columns * rank; ++i) sum[i] += share[i];
            }
            const int64_t from = index * columns;
            for (int64_t k = 0; k < rank; ++k)
                std::copy_n(sum + k * columns, std::min(columns, cols - from), for_a + k * cols + from);
        }
    });
}

}  // namespace vlprune

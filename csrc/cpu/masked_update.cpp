#include "masked_update.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "ops.h"
#include "parallel.h"
#include "wanda_rows.h"

namespace vlprune {
namespace {

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
    const int parts = row_parts(rows, cols, threads);
    const size_t own = panels.size() + static_cast<size_t>(rank * masked_update_sums);
    std::vector<float> shares(own * static_cast<size_t>(parts));
    parallel_parts(parts, [&](int part, int count) {
        float* share = shares.data() + own * static_cast<size_t>(part);
        run(problem, rows * part / count, rows * (part + 1) / count, share, share + panels.size());
    });
    for (int64_t k = 0; k < rank; ++k)
        for (int64_t j = 0; j < cols; ++j) {
            const auto at = static_cast<size_t>(j / chosen.panel * chosen.panel * rank + k * chosen.panel +
                                                j % chosen.panel);
            float sum = 0.0f;
            for (size_t part = 0; part < static_cast<size_t>(parts); ++part) sum += shares[part * own + at];
            for_a[k * cols + j] = sum;
        }
}

}  // namespace vlprune

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

const MaskedUpdateVariant& variant(Isa isa) {
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
    if (dtype == DType::f16) throw std::invalid_argument("masked_update: float16 is not computed natively on the CPU");
    const MaskedUpdateVariant& chosen = variant(isa);
    if (rows == 0 || cols == 0) return;
    const std::vector<float> panels = panels_of(a, rank, cols, chosen.panel);
    const MaskedUpdate problem{weight, panels.data(), b, reinterpret_cast<const uint8_t*>(keep), out, cols, rank};
    const MaskedUpdateRows run = dtype == DType::f32 ? chosen.f32 : chosen.bf16;
    parallel_parts(row_parts(rows, cols, threads),
                   [&](int part, int parts) { run(problem, rows * part / parts, rows * (part + 1) / parts); });
}

}  // namespace vlprune

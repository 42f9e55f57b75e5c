#include "attention.h"

#include <stdexcept>

#include "ops.h"
#include "parallel.h"

namespace vlprune {
namespace {

const AttentionVariant& variant(Isa isa) {
    if (!isa_runs(isa))
        throw std::invalid_argument("head_attention: this machine cannot run the instruction set asked for");
    switch (isa) {
#ifdef VLPRUNE_HAVE_AVX2
        case Isa::avx2:
            return attention_avx2;
#endif
#ifdef VLPRUNE_HAVE_AVX512
        case Isa::avx512:
        case Isa::avx512_bf16:
            return attention_avx512;
#endif
        default:
            return attention_portable;
    }
}

}  // namespace

void head_attention(const void* qkv, DType dtype, int64_t batch_stride, int64_t token_stride, int64_t batch,
                    int64_t length, int64_t heads, int64_t dim, bool causal, float scale, void* out, int threads,
                    Isa isa) {
    if (dtype == DType::f16) throw std::invalid_argument("head_attention: float16 is not computed natively on the CPU");
    const auto run = dtype == DType::f32 ? variant(isa).f32 : variant(isa).bf16;
    if (length <= 0) return;
    int64_t claimed = 0;
    const Attention problem{qkv, batch_stride, token_stride, batch, length, heads, dim, causal, scale, out, &claimed};
    parallel_parts(threads, [&](int, int parts) { run(problem, parts); });
}

}  // namespace vlprune

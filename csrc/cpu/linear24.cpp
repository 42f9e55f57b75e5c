#include "linear24.h"

#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "parallel.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vlprune {
namespace {

const Linear24Variant& variant(DType dtype, Isa isa) {
    if (dtype == DType::f16) throw std::invalid_argument("linear24: float16 is not computed natively on the CPU");
    if (!isa_runs(isa)) throw std::invalid_argument("linear24: this machine cannot run the instruction set asked for");
    const bool f32 = dtype == DType::f32;
    switch (isa) {
#ifdef VLPRUNE_HAVE_AVX2
        case Isa::avx2:
            return f32 ? linear24_avx2_f32 : linear24_avx2_bf16;
#endif
#ifdef VLPRUNE_HAVE_AVX512
        case Isa::avx512:
            return f32 ? linear24_avx512_f32 : linear24_avx512_bf16;
#endif
#ifdef VLPRUNE_HAVE_AVX512_BF16
        case Isa::avx512_bf16:
            return f32 ? linear24_avx512_f32 : linear24_avx512_bf16_dot;
#endif
        default:
            return f32 ? linear24_portable_f32 : linear24_portable_bf16;
    }
}

const Linear24Form& form(DType dtype, bool few, Isa isa) {
    const Linear24Variant& chosen = variant(dtype, isa);
    return few ? chosen.few : chosen.many;
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Before the first write: a large weight is a stream through many pages, and pages of 2 MB make ViT-B's layers 1 to
// 2 % faster on Zen 3. Advice only, so nothing is wrong if it is not taken.
void ask_for_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = uintptr_t(2) << 20;
    const auto first = reinterpret_cast<uintptr_t>(memory);
    const uintptr_t begin = (first + page - 1) / page * page;
    const uintptr_t end = (first + static_cast<uintptr_t>(bytes)) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

void* linear24_workspace(size_t bytes) {
    thread_local std::unique_ptr<void, Free> memory;
    thread_local size_t size = 0;
    if (size < bytes) {
        const size_t rounded = (bytes + 4095) / 4096 * 4096;
        memory.reset();
        size = 0;
        memory.reset(std::aligned_alloc(4096, rounded));
        if (!memory) throw std::bad_alloc();
        size = rounded;
    }
    return memory.get();
}

int linear24_few_below(DType dtype, Isa isa) { return variant(dtype, isa).few_below; }

int64_t linear24_prepared_bytes(DType dtype, int64_t out, int64_t in, bool few, Isa isa) {
    return form(dtype, few, isa).prepared_bytes(out, in);
}

void linear24_prepare(const void* values, const uint8_t* meta, DType dtype, int64_t out, int64_t in, bool few,
                      void* prepared, Isa isa) {
    const Linear24Form& chosen = form(dtype, few, isa);
    ask_for_huge_pages(prepared, chosen.prepared_bytes(out, in));
    chosen.prepare(values, meta, out, in, prepared);
}

void linear24(const void* x, int64_t ldx, const LayerNorm* norm, const void* prepared, bool few, const void* bias,
              const void* residual, DType dtype, int64_t tokens, int64_t out, int64_t in, Activation act, void* y,
              int threads, Isa isa) {
    const Linear24Form& chosen = form(dtype, few, isa);
    if (norm && (few || dtype != DType::f32))
        throw std::invalid_argument("linear24: only the float32 form for many tokens applies a layer norm");
    if (tokens <= 0 || out <= 0) return;
    std::vector<Cursor> cursors(static_cast<size_t>(threads));
    const Linear24 problem{x, ldx, norm, prepared, bias, residual, tokens, out, in, act, y, cursors.data()};
    parallel_parts(threads, [&](int part, int parts) { chosen.run(problem, part, parts); });
}

}  // namespace vlprune

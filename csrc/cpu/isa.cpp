#include <cstdlib>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace vlprune {
namespace {

// True only where this build contains the variant, the processor has it, and the operating system saves
// its registers (__builtin_cpu_supports checks the latter too).
bool machine_has(Isa isa) {
    switch (isa) {
        case Isa::portable:
            return true;
#ifdef VLPRUNE_HAVE_AVX2
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("f16c");
#endif
#if defined(VLPRUNE_EMULATE_AVX512)
        case Isa::avx512:
        case Isa::avx512_bf16:
            return machine_has(Isa::avx2);
#else
#ifdef VLPRUNE_HAVE_AVX512
        case Isa::avx512:
            return machine_has(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq");
#endif
#ifdef VLPRUNE_HAVE_AVX512_BF16
        case Isa::avx512_bf16:
            return machine_has(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#endif
#endif
        default:
            return false;
    }
}

// VLPRUNE_CPU_ISA caps the choice: to compare variants, or to rule one out when hunting a fault.
Isa cap_from_environment() {
    const char* text = std::getenv("VLPRUNE_CPU_ISA");
    if (text == nullptr || *text == '\0') return Isa::avx512_bf16;
    const std::string name(text);
    if (name == "portable") return Isa::portable;
    if (name == "avx2") return Isa::avx2;
    if (name == "avx512") return Isa::avx512;
    if (name == "avx512_bf16") return Isa::avx512_bf16;
    throw std::invalid_argument("VLPRUNE_CPU_ISA is '" + name +
                                "'; allowed are portable, avx2, avx512 and avx512_bf16");
}

}  // namespace

bool isa_runs(Isa isa) { return machine_has(isa); }

Isa best_isa() {
    Isa best = cap_from_environment();
    while (!machine_has(best)) best = static_cast<Isa>(static_cast<int>(best) - 1);
    return best;
}

}  // namespace vlprune

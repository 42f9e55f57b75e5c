// The AVX-512 intrinsics, or their emulation where VLPRUNE_EMULATE_AVX512 builds the test module.
#pragma once
#ifdef VLPRUNE_EMULATE_AVX512
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
#else
#include <immintrin.h>
#endif

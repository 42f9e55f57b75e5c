// The AVX-512 intrinsics, or their emulation where VLPRUNE_EMULATE_AVX512 builds the test module.
#pragma once
#ifdef VLPRUNE_EMULATE_AVX512
#include "emulated/avx512.h"
#else
#include <immintrin.h>
#endif

#define VLPRUNE_VARIANT avx2
#define VLPRUNE_KERNELS kRowKernelsAvx2
#include "wanda_kernels.inl"

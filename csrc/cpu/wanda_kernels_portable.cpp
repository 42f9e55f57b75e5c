#define VLPRUNE_VARIANT portable
#define VLPRUNE_KERNELS kRowKernelsPortable
#include "wanda_kernels.inl"

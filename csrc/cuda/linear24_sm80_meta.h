// Where mma.sp.m16n8k32 wants the indices of a 2:4 weight of 16-bit numbers.
//
// PTX ISA, "Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types": one instruction takes 16
// outputs x 32 inputs. Of each four neighbouring lanes two give the indices (the selector says whether the
// first or the second two): lane 4 * g + 2 * selector + h those of outputs g (low 16 bits) and g + 8 (high)
// and of inputs 16 * h to 16 * h + 15. So one word a lane serves two instructions, 32 outputs x 32 inputs.
// Such blocks of 32 words are stored one after the other, first along the inputs: a warp reads 128
// consecutive bytes, and whoever copies a row of blocks reads them in order.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define VLPRUNE_HD __host__ __device__ __forceinline__
#else
#define VLPRUNE_HD inline
#endif

namespace vlprune::sm80 {

constexpr int meta_block_out = 32, meta_block_in = 32, meta_block_bytes = 128;

VLPRUNE_HD constexpr int64_t meta_blocks(int64_t size) { return (size + 31) / 32; }

// Which 16 bits, counted from the block's start, hold 16 inputs (`half` of the 32) of output `row`.
VLPRUNE_HD constexpr int meta_place(int row, int half) {
    const int selector = row / 16, g = row % 8, high = row / 8 % 2;
    const int lane = 4 * g + 2 * selector + half;
    return 2 * lane + high;
}

}  // namespace vlprune::sm80

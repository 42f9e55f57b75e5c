// One block's tile of the product: its sizes, and every address that it uses in shared memory.
//
// These functions run in the kernel and, on the host, in the emulation that tests it.
#pragma once
#include "cuda/linear24_sm80_meta.h"

namespace vlprune::sm80 {

// Inputs a stage: one line of 128 bytes of activations, or of 64 bytes of kept weights. A step is one mma.sp.
constexpr int stage_in = 64, step_in = 32, steps = stage_in / step_in;
constexpr int chunk = 16;  // bytes that are copied, and that a row of ldmatrix takes, at once
constexpr int x_row = stage_in * 2, value_row = stage_in;  // bytes

// Byte offset of `column`, in chunks, of `row` in rows of `Columns` chunks. Eight rows of one column, which
// is what ldmatrix takes at once, lie in eight different groups of four banks; so do eight columns of a row.
template <int Columns>
VLPRUNE_HD constexpr int swizzled(int row, int column) {
    static_assert(Columns == 4 || Columns % 8 == 0);
    const int moved = Columns == 4 ? column ^ (row / 2 & 3) : column ^ (row & 7);
    return (row * Columns + moved) * chunk;
}

// A block computes Out x Tokens results by WarpsOut x WarpsTokens warps, with Stages stages in flight;
// `Resident` blocks are to fit on one multiprocessor at once (a bound on registers).
template <int Out, int Tokens, int WarpsOut, int WarpsTokens, int Stages, int Resident>
struct Tile {
    static constexpr int out = Out, tokens = Tokens, stages = Stages, resident = Resident;
    static constexpr int threads = 32 * WarpsOut * WarpsTokens;
    static constexpr int warp_out = Out / WarpsOut, warp_tokens = Tokens / WarpsTokens;
    static constexpr int m16 = warp_out / 16, n8 = warp_tokens / 8;  // instructions of a warp and step
    static_assert(Out % WarpsOut == 0 && Tokens % WarpsTokens == 0);
    static_assert(warp_out % meta_block_out == 0 && warp_tokens % 8 == 0);

    static constexpr int x_at = Out * value_row, meta_at = x_at + Tokens * x_row;
    static constexpr int stage_bytes = meta_at + Out * stage_in / 8;
    // Results leave through shared memory, as rows of tokens.
    static constexpr int result_chunks = Out / 8, result_bytes = Tokens * Out * 2;
    static constexpr int shared_bytes =
        stages * stage_bytes > result_bytes ? stages * stage_bytes : result_bytes;

    // Chunks that each thread copies a stage; the last of x and of meta only some threads.
    static constexpr int value_chunks = Out * value_row / chunk, value_copies = value_chunks / threads;
    static constexpr int x_chunks = Tokens * x_row / chunk, x_copies = (x_chunks + threads - 1) / threads;
    static constexpr int meta_chunks = Out * stage_in / 8 / chunk;
    static_assert(value_chunks % threads == 0 && meta_chunks <= threads);
    // A thread's chunks are whole multiples of eight rows apart, so one swizzle serves them all.
    static constexpr int value_copy_rows = threads / 4, x_copy_rows = threads / 8;
    static_assert(value_copy_rows % 8 == 0 && x_copy_rows % 8 == 0);

    struct Place {
        int row, column;  // column in chunks
    };
    VLPRUNE_HD static constexpr Place value_copy(int thread) { return {thread / 4, thread % 4}; }
    VLPRUNE_HD static constexpr Place x_copy(int thread) { return {thread / 8, thread % 8}; }
    // Meta: row counts blocks of 32 outputs, a stage has 256 bytes of each.
    VLPRUNE_HD static constexpr Place meta_copy(int thread) { return {thread / 16, thread % 16}; }

    VLPRUNE_HD static constexpr int warp_row(int warp) { return warp % WarpsOut * warp_out; }
    VLPRUNE_HD static constexpr int warp_token(int warp) { return warp / WarpsOut * warp_tokens; }

    // ldmatrix of 16 outputs x 16 kept weights: lanes 0-15 give the rows of its left half, 16-31 of its right.
    VLPRUNE_HD static constexpr int values_lane(int warp, int lane) {
        return swizzled<4>(warp_row(warp) + lane % 16, lane / 16);
    }
    // A step is two chunks further and a block of 16 outputs 16 rows: both leave the swizzle's other bits.
    VLPRUNE_HD static constexpr int values_at(int lane_offset, int m, int step) {
        return (lane_offset ^ (2 * chunk * step)) + m * 16 * value_row;
    }
    // ldmatrix of 8 tokens x 32 inputs: lanes 8 i to 8 i + 7 give the rows of inputs 8 i to 8 i + 7.
    VLPRUNE_HD static constexpr int x_lane(int warp, int lane) {
        return swizzled<8>(warp_token(warp) + lane % 8, lane / 8);
    }
    VLPRUNE_HD static constexpr int x_step(int lane_offset, int n, int step) {
        return x_at + (lane_offset ^ (4 * chunk * step)) + n * 8 * x_row;
    }
    VLPRUNE_HD static constexpr int meta_lane(int warp, int lane) {
        return meta_at + warp_row(warp) / meta_block_out * steps * meta_block_bytes + 4 * lane;
    }
    VLPRUNE_HD static constexpr int meta_step(int lane_offset, int m32, int step) {
        return lane_offset + (m32 * steps + step) * meta_block_bytes;
    }

    // Results: 8 outputs `column` of a token.
    VLPRUNE_HD static constexpr int result(int token, int column) {
        return swizzled<result_chunks>(token, column);
    }
};

}  // namespace vlprune::sm80

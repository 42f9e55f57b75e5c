// The sum over the inputs: copies to shared memory in flight, fragments one step ahead of the instructions.
//
// `Machine` is the hardware: PTX on a GPU (linear24_sm80_device.cuh), or its emulation in the tests, which runs
// this code lane by lane. Every thread of a block calls every function here.
#pragma once
#include "cuda/linear24_sm80_problem.h"
#include "cuda/linear24_sm80_tile.h"

namespace vlprune::sm80 {

// A thread's sums: c[m][n] has of outputs 16 m and tokens 8 n those that one mma gives a lane.
template <class Tile>
using Sums = float[Tile::m16][Tile::n8][4];

// What a thread copies every stage. Rows beyond the end are replaced by the last one: reading them is safe,
// what they give is never stored, and no output or token touches another's. Offsets have 32 bits (why_not sees
// to that) and no pointer moves from stage to stage: registers are short.
template <class Tile>
class Copies {
public:
    // One copy each; a stage's are spread over a step's instructions.
    static constexpr int pieces = Tile::value_copies + Tile::x_copies + 1;

    VLPRUNE_HD Copies(const Problem& p, const Cut& c, int thread) : thread_(thread) {
        const auto value = Tile::value_copy(thread), x = Tile::x_copy(thread), meta = Tile::meta_copy(thread);
        const int last_out = p.out - c.first_out - 1, last_token = p.tokens - c.first_token - 1;
        const uint32_t value_stride = static_cast<uint32_t>(p.in), x_stride = static_cast<uint32_t>(p.ldx) * 2;
#pragma unroll
        for (int i = 0; i < Tile::value_copies; ++i)
            values_[i] = (c.first_out + least(value.row + i * Tile::value_copy_rows, last_out)) * value_stride +
                         c.first_stage * value_row + value.column * chunk;
#pragma unroll
        for (int i = 0; i < Tile::x_copies; ++i)
            x_rows_[i] = least(x.row + i * Tile::x_copy_rows, last_token) * x_stride + x.column * chunk;
        x_ = reinterpret_cast<const char*>(p.x) + c.first_token * p.ldx * 2 + c.first_stage * x_row;
        const uint32_t row_block = least(c.first_out / meta_block_out + meta.row, (p.out - 1) / meta_block_out);
        const uint32_t first_block = row_block * (value_stride / meta_block_in) + c.first_stage * steps;
        meta_ = first_block * meta_block_bytes + meta.column * chunk;
        value_to_ = swizzled<4>(value.row, value.column);
        x_to_ = Tile::x_at + swizzled<8>(x.row, x.column);
    }

    // Starts one copy of a stage into the slot at byte `slot`, if wanted.
    template <class Machine>
    VLPRUNE_HD void start(Machine& machine, const Problem& p, int piece, int number, int slot,
                          bool wanted) const {
        const auto stage = static_cast<uint32_t>(number);
        if (piece < Tile::value_copies) {
            const int to = value_to_ + piece * Tile::value_copy_rows * value_row;
            const uint32_t from = values_[piece] + stage * value_row;
            machine.copy_if(wanted, slot + to, reinterpret_cast<const char*>(p.values) + from);
        } else if (piece < pieces - 1) {
            const int i = piece - Tile::value_copies, before = i * Tile::threads;
            const bool exists = before + Tile::threads <= Tile::x_chunks || before + thread_ < Tile::x_chunks;
            const int to = x_to_ + i * Tile::x_copy_rows * x_row;
            machine.copy_if(wanted && exists, slot + to, x_ + (x_rows_[i] + stage * x_row));
        } else {
            const int to = Tile::meta_at + thread_ * chunk;
            const uint32_t from = meta_ + stage * (steps * meta_block_bytes);
            machine.copy_if(wanted && thread_ < Tile::meta_chunks, slot + to, p.meta + from);
        }
    }

private:
    const char* x_;
    uint32_t values_[Tile::value_copies], x_rows_[Tile::x_copies], meta_;  // bytes
    int value_to_, x_to_, thread_;
};

// A warp's operands of one step. x is not doubled: each of its registers is loaded anew as soon as the
// instructions of this step that need it have been issued.
template <class Tile>
struct Fragments {
    uint32_t values[2][Tile::m16][4];
    uint32_t meta[2][Tile::m16 / 2];
    uint32_t x[Tile::n8][4];
};

template <class Tile>
struct Lane {
    int values, x, meta;  // byte offsets in a slot
    VLPRUNE_HD Lane(int warp, int lane)
        : values(Tile::values_lane(warp, lane)),
          x(Tile::x_lane(warp, lane)),
          meta(Tile::meta_lane(warp, lane)) {}
};

template <class Tile, class Machine>
VLPRUNE_HD void load_weight(Machine& machine, const Lane<Tile>& lane, int slot, int step, Fragments<Tile>& f) {
#pragma unroll
    for (int m = 0; m < Tile::m16; ++m)
        machine.load_matrices(f.values[step][m], slot + Tile::values_at(lane.values, m, step));
#pragma unroll
    for (int m32 = 0; m32 < Tile::m16 / 2; ++m32)
        f.meta[step][m32] = machine.load_word(slot + Tile::meta_step(lane.meta, m32, step));
}

template <class T, class Tile, class Machine>
VLPRUNE_HD void sum_inputs(Machine& machine, const Problem& p, const Cut& c, Sums<Tile>& sums) {
    const int thread = machine.thread();
    const Lane<Tile> lane(thread / 32, thread % 32);
    const Copies<Tile> copies(p, c, thread);
    Fragments<Tile> f;

    // Every wait counts groups of copies, so a group is closed each stage, with or without copies in it.
#pragma unroll
    for (int stage = 0; stage < Tile::stages; ++stage) {
#pragma unroll
        for (int piece = 0; piece < copies.pieces; ++piece)
            copies.start(machine, p, piece, stage, stage * Tile::stage_bytes, stage < c.stages);
        machine.close_copies();
    }
    machine.template wait_copies<Tile::stages - 1>();
    machine.sync();
    load_weight<Tile>(machine, lane, 0, 0, f);
#pragma unroll
    for (int n = 0; n < Tile::n8; ++n) machine.load_matrices(f.x[n], Tile::x_step(lane.x, n, 0));

    int slot = 0;
#pragma unroll 1
    for (int stage = 0; stage < c.stages; ++stage) {
        const int coming = stage + Tile::stages;
        const int next_slot = slot == (Tile::stages - 1) * Tile::stage_bytes ? 0 : slot + Tile::stage_bytes;
#pragma unroll
        for (int step = 0; step < steps; ++step) {
            const bool last_step = step == steps - 1;
            if (last_step) {
                // The next stage has landed for all; and all have read this one to its end, so its slot is
                // free. After the last stage the loads below read what is never used.
                machine.template wait_copies<Tile::stages - 2>();
                machine.sync();
            }
            const int from = last_step ? next_slot : slot, next = 1 - step;
            load_weight<Tile>(machine, lane, from, next, f);
#pragma unroll
            for (int n = 0; n < Tile::n8; ++n) {
#pragma unroll
                for (int m = 0; m < Tile::m16; m += 2) {
                    const uint32_t meta = f.meta[step][m / 2];
                    machine.template mma<T, 0>(sums[m][n], f.values[step][m], f.x[n], meta);
                    machine.template mma<T, 1>(sums[m + 1][n], f.values[step][m + 1], f.x[n], meta);
                }
                machine.load_matrices(f.x[n], from + Tile::x_step(lane.x, n, next));
                if (!last_step) continue;
                const int first = n * copies.pieces / Tile::n8, end = (n + 1) * copies.pieces / Tile::n8;
#pragma unroll
                for (int piece = first; piece < end; ++piece)
                    copies.start(machine, p, piece, coming, slot, coming < c.stages);
            }
            if (last_step) machine.close_copies();
        }
        slot = next_slot;
    }
}

}  // namespace vlprune::sm80

// From sums to results: the parts of the inputs added up, bias, activation and residual in float32, and rows
// of tokens stored 16 bytes at a time.
#pragma once
#include "cuda/linear24_sm80_mainloop.h"
#include "cuda/linear24_sm80_types.h"

namespace vlprune::sm80 {

// Adds up what the blocks of one tile have summed; only the block that arrives last returns true. It adds in
// the order of the parts, whoever came last, so results repeat to the bit.
template <class Tile, class Machine>
VLPRUNE_HD bool gather_parts(Machine& machine, const Problem& p, const Cut& c, Sums<Tile>& sums) {
    constexpr int quads = Tile::m16 * Tile::n8;
    const int thread = machine.thread();
    const auto quad = [&](int part, int m, int n) {
        return p.partials +
               ((int64_t{c.tile * p.parts + part} * quads + m * Tile::n8 + n) * Tile::threads + thread) * 4;
    };
#pragma unroll
    for (int m = 0; m < Tile::m16; ++m)
#pragma unroll
        for (int n = 0; n < Tile::n8; ++n) machine.store_partial(quad(c.part, m, n), sums[m][n]);
    if (!machine.last_to_arrive(p.arrived + c.tile, p.parts)) return false;
#pragma unroll
    for (int m = 0; m < Tile::m16; ++m)
#pragma unroll
        for (int n = 0; n < Tile::n8; ++n) machine.load_partial(quad(0, m, n), sums[m][n]);
    for (int part = 1; part < p.parts; ++part) {
#pragma unroll
        for (int m = 0; m < Tile::m16; ++m)
#pragma unroll
            for (int n = 0; n < Tile::n8; ++n) {
                float more[4];
                machine.load_partial(quad(part, m, n), more);
                for (int i = 0; i < 4; ++i) sums[m][n][i] += more[i];
            }
    }
    return true;
}

// Lets each thread handle its share of a tile's pieces of 8 results that exist: use(byte in shared memory,
// token, output).
template <class Tile, class Machine, class Use>
VLPRUNE_HD void each_piece(Machine& machine, const Problem& p, const Cut& c, const Use& use) {
#pragma unroll 4
    for (int piece = machine.thread(); piece < Tile::tokens * Tile::result_chunks; piece += Tile::threads) {
        const int row = piece / Tile::result_chunks, column = piece % Tile::result_chunks;
        const int token = c.first_token + row, output = c.first_out + column * 8;
        if (token < p.tokens && output < p.out) use(Tile::result(row, column), token, output);
    }
}

// sums[m][n] of lane 4 g + i: outputs g and g + 8 of the 16, each of tokens 2 i and 2 i + 1 of the 8.
template <class T, class Tile, class Machine>
VLPRUNE_HD void add_bias_and_activate(Machine& machine, const Problem& p, int first_out, Sums<Tile>& sums) {
    const int thread = machine.thread(), first = first_out + Tile::warp_row(thread / 32) + thread % 32 / 4;
    float bias[Tile::m16][2] = {};
    if (p.bias)
#pragma unroll
        for (int m = 0; m < Tile::m16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int output = least(first + 16 * m + 8 * half, p.out - 1);
                bias[m][half] = T::to_float(machine.load_16(p.bias + output));
            }
#pragma unroll
    for (int m = 0; m < Tile::m16; ++m)
#pragma unroll
        for (int n = 0; n < Tile::n8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[m][n][i] += bias[m][i / 2];
    if (!p.activated) return;
#pragma unroll
    for (int m = 0; m < Tile::m16; ++m)
#pragma unroll
        for (int n = 0; n < Tile::n8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[m][n][i] = gated(sums[m][n][i], p.gate);
}

// Adds the residual where there is one, and puts 16-bit results where it lay.
template <class T, class Tile, class Machine>
VLPRUNE_HD void round_sums(Machine& machine, bool residual, Sums<Tile>& sums) {
    const int thread = machine.thread(), lane = thread % 32;
    const int first_token = Tile::warp_token(thread / 32), first_column = Tile::warp_row(thread / 32) / 8;
    // 32 outputs are four blocks of 8 x 8, one ldmatrix, for each 8 tokens.
#pragma unroll
    for (int m = 0; m < Tile::m16; m += 2)
#pragma unroll
        for (int n = 0; n < Tile::n8; ++n) {
            const int token = first_token + 8 * n, column = first_column + 2 * m;
            float* const blocks[4] = {sums[m][n], sums[m][n] + 2, sums[m + 1][n], sums[m + 1][n] + 2};
            if (residual) {
                // Transposed, a block of 8 tokens x 8 outputs comes to the lanes as the sums lie.
                uint32_t pairs[4];
                machine.load_matrices_transposed(pairs, Tile::result(token + lane % 8, column + lane / 8));
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    blocks[i][0] += low<T>(pairs[i]);
                    blocks[i][1] += high<T>(pairs[i]);
                }
            }
            // Transposed back, a lane has two outputs of token lane / 4. They take the place of residuals that
            // the whole warp has read, as all of its lanes come together to transpose.
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t pair = machine.template rounded<T>(blocks[i][0], blocks[i][1]);
                const int at = Tile::result(token + lane / 4, column + i) + lane % 4 * 4;
                machine.store_word(at, machine.transpose(pair));
            }
        }
}

template <class T, class Tile, class Machine>
VLPRUNE_HD void finish(Machine& machine, const Problem& p, const Cut& c, Sums<Tile>& sums) {
    machine.template wait_copies<0>();
    // What follows takes the place of stages, from which the loop's last, unused loads may still read.
    machine.sync();
    if (p.residual) {
        each_piece<Tile>(machine, p, c, [&](int at, int token, int output) {
            machine.copy(at, p.residual + token * p.ldr + output);
        });
        machine.close_copies();
    }
    add_bias_and_activate<T, Tile>(machine, p, c.first_out, sums);
    if (p.residual) {
        machine.template wait_copies<0>();
        machine.sync();
    }
    round_sums<T, Tile>(machine, p.residual != nullptr, sums);
    machine.sync();
    each_piece<Tile>(machine, p, c, [&](int at, int token, int output) {
        machine.store_8(p.y + token * p.ldy + output, at);
    });
}

// One block of the launch.
template <class T, class Tile, class Machine>
VLPRUNE_HD void linear24_block(Machine& machine, const Problem& p, unsigned block) {
    const Cut c = cut<Tile>(p, block, stage_in);
    float sums[Tile::m16][Tile::n8][4] = {};
    sum_inputs<T, Tile>(machine, p, c, sums);
    if (p.parts > 1 && !gather_parts<Tile>(machine, p, c, sums)) return;
    finish<T, Tile>(machine, p, c, sums);
}

}  // namespace vlprune::sm80

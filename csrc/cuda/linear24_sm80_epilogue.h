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
    const auto quad = [&](int part, int m, int n) {
        return p.partials +
               (((c.tile * p.parts + part) * quads + m * Tile::n8 + n) * Tile::threads + machine.thread()) * 4;
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

// sums[m][n] of a lane: outputs g and g + 8 of the 16, each of tokens 2 i and 2 i + 1 of the 8 (lane = 4 g + i).
template <class T, class Tile, Activation A, class Machine>
VLPRUNE_HD void add_bias_and_activate(Machine& machine, const Problem& p, int first_out, Sums<Tile>& sums) {
    const int g = machine.thread() % 32 / 4;
#pragma unroll
    for (int m = 0; m < Tile::m16; ++m) {
        float bias[2] = {0.0f, 0.0f};
        if (p.bias)
            for (int half = 0; half < 2; ++half)
                bias[half] = T::to_float(machine.load_16(p.bias + least(first_out + 16 * m + 8 * half + g, p.out - 1)));
#pragma unroll
        for (int n = 0; n < Tile::n8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[m][n][i] = activated<A>(sums[m][n][i] + bias[i / 2]);
    }
}

// Lets each thread handle its share of a tile's pieces of 8 results that exist: use(byte in shared memory, token,
// output).
template <class Tile, class Machine, class Use>
VLPRUNE_HD void each_piece(Machine& machine, const Problem& p, const Cut& c, const Use& use) {
#pragma unroll 4
    for (int piece = machine.thread(); piece < Tile::tokens * Tile::result_chunks; piece += Tile::threads) {
        const int row = piece / Tile::result_chunks, column = piece % Tile::result_chunks;
        const int token = c.first_token + row, output = c.first_out + column * 8;
        if (token < p.tokens && output < p.out) use(Tile::result(row, column), token, output);
    }
}

template <class T, class Tile, class Machine>
VLPRUNE_HD void add_residual(Machine& machine, const Problem& p, const Cut& c, Sums<Tile>& sums) {
    each_piece<Tile>(machine, p, c, [&](int at, int token, int output) {
        machine.copy(at, p.residual + token * p.ldr + output);
    });
    machine.close_copies();
    machine.template wait_copies<0>();
    machine.sync();
    // Transposed, a block of 8 tokens x 8 outputs comes to the lanes as the sums lie; four at once are 32 outputs.
    const int warp = machine.thread() / 32, lane = machine.thread() % 32;
    const int token = Tile::warp_token(warp) + lane % 8, column = Tile::warp_row(warp) / 8 + lane / 8;
#pragma unroll
    for (int n = 0; n < Tile::n8; ++n)
#pragma unroll
        for (int m = 0; m < Tile::m16; m += 2) {
            uint32_t pairs[4];
            machine.load_matrices_transposed(pairs, Tile::result(token + 8 * n, column + 2 * m));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[m + i / 2][n][i % 2 * 2] += low<T>(pairs[i]);
                sums[m + i / 2][n][i % 2 * 2 + 1] += high<T>(pairs[i]);
            }
        }
    // A warp now stores its results where it has just read its residual.
    machine.sync_warp();
}

template <class T, class Tile, class Machine>
VLPRUNE_HD void store_results(Machine& machine, const Problem& p, const Cut& c, Sums<Tile>& sums) {
    const int warp = machine.thread() / 32, lane = machine.thread() % 32;
    const int token = Tile::warp_token(warp) + lane / 4, column = Tile::warp_row(warp) / 8;
#pragma unroll
    for (int n = 0; n < Tile::n8; ++n)
#pragma unroll
        for (int m = 0; m < Tile::m16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // A block of 8 outputs x 8 tokens; transposed, a lane has two outputs of token lane / 4.
                const float* const pair = sums[m][n] + 2 * half;
                const uint32_t results = machine.transpose(machine.template rounded<T>(pair[0], pair[1]));
                machine.store_word(Tile::result(token + 8 * n, column + 2 * m + half) + lane % 4 * 4, results);
            }
    machine.sync();
    each_piece<Tile>(machine, p, c, [&](int at, int token_, int output) {
        machine.store_8(p.y + token_ * p.ldy + output, at);
    });
}

template <class T, class Tile, class Machine>
VLPRUNE_HD void finish(Machine& machine, const Problem& p, const Cut& c, Sums<Tile>& sums) {
    const int first_out = c.first_out + Tile::warp_row(machine.thread() / 32);
    if (p.activation == Activation::gelu)
        add_bias_and_activate<T, Tile, Activation::gelu>(machine, p, first_out, sums);
    else if (p.activation == Activation::quick_gelu)
        add_bias_and_activate<T, Tile, Activation::quick_gelu>(machine, p, first_out, sums);
    else
        add_bias_and_activate<T, Tile, Activation::none>(machine, p, first_out, sums);
    machine.template wait_copies<0>();
    machine.sync();  // all warps are done with the stages, whose place the results take
    if (p.residual) add_residual<T, Tile>(machine, p, c, sums);
    store_results<T, Tile>(machine, p, c, sums);
}

// One block of the launch.
template <class T, class Tile, class Machine>
VLPRUNE_HD void linear24_block(Machine& machine, const Problem& p, int64_t block) {
    const Cut c = cut<Tile>(p, block, stage_in);
    float sums[Tile::m16][Tile::n8][4] = {};
    sum_inputs<T, Tile>(machine, p, c, sums);
    if (p.parts > 1 && !gather_parts<Tile>(machine, p, c, sums)) return;
    finish<T, Tile>(machine, p, c, sums);
}

}  // namespace vlprune::sm80

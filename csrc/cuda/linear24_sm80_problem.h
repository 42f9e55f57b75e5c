// What every block of a launch is told, and how the product is cut into blocks.
#pragma once
#include <cstdint>

#include "cuda/linear24_activation.cuh"
#include "cuda/linear24_sm80_meta.h"

namespace vlprune::sm80 {

// Pointers and strides as in Linear24Call, with 16-bit numbers as their bits.
struct Problem {
    const uint16_t* x;
    const uint16_t* values;
    const uint8_t* meta;
    const uint16_t* bias;
    const uint16_t* residual;
    uint16_t* y;
    int64_t ldx, ldr, ldy;
    int tokens, out, in;
    bool activated;
    Gate gate;          // of the activation, if there is one
    int parts;          // blocks that share the inputs of one tile
    uint32_t* arrived;  // with parts > 1: how many of a tile's blocks are done
    float* partials;    // with parts > 1: their sums
};

VLPRUNE_HD constexpr int64_t up(int64_t size, int64_t block) { return (size + block - 1) / block; }
VLPRUNE_HD constexpr int least(int a, int b) { return a < b ? a : b; }

// One block's share. Blocks that run at the same time have the same tokens and different outputs: the weight, a
// few MB, stays in the L2 cache.
struct Cut {
    int tile, part, first_out, first_token, first_stage, stages;
};

template <class Tile>
VLPRUNE_HD Cut cut(const Problem& p, unsigned block, int stage_in) {
    const unsigned parts = static_cast<unsigned>(p.parts), all = static_cast<unsigned>(p.in / stage_in);
    const unsigned across = (static_cast<unsigned>(p.out) + Tile::out - 1) / Tile::out;
    const unsigned tile = block / parts, part = block % parts;
    const unsigned first_stage = all * part / parts, end_stage = all * (part + 1) / parts;
    return {static_cast<int>(tile),
            static_cast<int>(part),
            static_cast<int>(tile % across * Tile::out),
            static_cast<int>(tile / across * Tile::tokens),
            static_cast<int>(first_stage),
            static_cast<int>(end_stage - first_stage)};
}

}  // namespace vlprune::sm80

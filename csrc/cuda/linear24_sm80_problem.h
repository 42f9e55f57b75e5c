// What every block of a launch is told, and how the product is cut into blocks.
#pragma once
#include <cstdint>

#include "codes.h"
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
    Activation activation;
    int parts;          // blocks that share the inputs of one tile
    uint32_t* arrived;  // with parts > 1: how many of a tile's blocks are done
    float* partials;    // with parts > 1: their sums
};

VLPRUNE_HD constexpr int64_t up(int64_t size, int64_t block) { return (size + block - 1) / block; }
VLPRUNE_HD constexpr int least(int a, int b) { return a < b ? a : b; }

// Blocks next to each other in time share their tokens: the weight, a few MB, stays in the L2 cache.
struct Cut {
    int64_t tile;
    int part, first_out, first_token, first_stage, stages;
};

template <class Tile>
VLPRUNE_HD Cut cut(const Problem& p, int64_t block, int stage_in) {
    const int64_t across = up(p.out, Tile::out);
    Cut c;
    c.part = static_cast<int>(block % p.parts);
    c.tile = block / p.parts;
    c.first_out = static_cast<int>(c.tile % across) * Tile::out;
    c.first_token = static_cast<int>(c.tile / across) * Tile::tokens;
    const int all = p.in / stage_in;
    c.first_stage = static_cast<int>(static_cast<int64_t>(all) * c.part / p.parts);
    c.stages = static_cast<int>(static_cast<int64_t>(all) * (c.part + 1) / p.parts) - c.first_stage;
    return c;
}

}  // namespace vlprune::sm80

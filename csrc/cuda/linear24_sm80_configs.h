// The tiles that are compiled, and the configs that choose among them.
#pragma once
#include "cuda/linear24_sm80_problem.h"
#include "cuda/linear24_sm80_tile.h"

namespace vlprune::sm80 {

// Out x tokens, warps along out x tokens, stages, blocks a multiprocessor. The closer a warp's share is to a
// square of operand bytes, 64 outputs x 32 tokens, the less it reads from shared memory, which the large tiles
// have to wait for as much as for the tensor cores (see linear24_sm80.md). Tokens need only be eights:
// 50 are one tile of 56, 197 two of 112, 257 three of 96.
// Shared memory of sm_86 and sm_89 is 99 KB a block: only the first tile needs more.
using Tile256x128 = Tile<256, 128, 4, 2, 3, 1>;
using Tile128x128 = Tile<128, 128, 2, 2, 3, 2>;
using Tile128x112 = Tile<128, 112, 2, 2, 3, 2>;
using Tile128x96 = Tile<128, 96, 2, 2, 3, 2>;
using Tile128x64 = Tile<128, 64, 2, 2, 4, 2>;
using Tile64x64 = Tile<64, 64, 2, 2, 3, 4>;
using Tile64x56 = Tile<64, 56, 2, 1, 4, 4>;
using Tile64x32 = Tile<64, 32, 2, 2, 4, 4>;

struct Config {
    int tile;    // position in with_tile
    bool parts;  // several blocks may share a tile's inputs
    const char* name;
};

constexpr Config configs[] = {
    {0, false, "256x128"},      {1, false, "128x128"},     {2, false, "128x112"},    {3, false, "128x96"},
    {4, false, "128x64"},       {5, false, "64x64"},       {6, false, "64x56"},      {7, false, "64x32"},
    {2, true, "128x112 parts"}, {3, true, "128x96 parts"}, {4, true, "128x64 parts"}, {5, true, "64x64 parts"},
    {6, true, "64x56 parts"},   {7, true, "64x32 parts"},
};
constexpr int config_count = sizeof configs / sizeof configs[0];

// Calls use(Tile{}) with the tile of that position.
template <class Use>
auto with_tile(int tile, const Use& use) {
    switch (tile) {
        case 0: return use(Tile256x128{});
        case 1: return use(Tile128x128{});
        case 2: return use(Tile128x112{});
        case 3: return use(Tile128x96{});
        case 4: return use(Tile128x64{});
        case 5: return use(Tile64x64{});
        case 6: return use(Tile64x56{});
        default: return use(Tile64x32{});
    }
}

// Parts. Counters have a fixed place, so that calls of all sizes can follow each other on one workspace: each
// leaves its counters at 0 and never writes floats over another's.
constexpr int most_blocks = 1024, most_parts = 8, fewest_stages = 2;
constexpr int64_t counter_bytes = most_blocks * 4;

template <class Tile>
int64_t tiles(int64_t tokens, int64_t out) {
    return up(tokens, Tile::tokens) * up(out, Tile::out);
}

// How many parts may share a tile: with many tiles there is nothing to gain, and few stages do not pay the way
// through the workspace.
inline int possible_parts(const Config& config, int64_t tiles, int64_t in) {
    if (!config.parts) return 1;
    int64_t parts = most_blocks / tiles;
    if (parts > in / stage_in / fewest_stages) parts = in / stage_in / fewest_stages;
    if (parts > most_parts) parts = most_parts;
    return parts < 1 ? 1 : static_cast<int>(parts);
}

// How many do share it: as many as fill the multiprocessors once.
template <class Tile>
int chosen_parts(const Config& config, int64_t tiles, int64_t in, int sms) {
    const int64_t filled = int64_t{sms} * Tile::resident / tiles;
    const int possible = possible_parts(config, tiles, in);
    return filled < 1 ? 1 : filled < possible ? static_cast<int>(filled) : possible;
}

template <class Tile>
int64_t workspace_bytes(int64_t tiles, int parts) {
    return parts == 1 ? 0 : counter_bytes + tiles * parts * Tile::out * Tile::tokens * 4;
}

}  // namespace vlprune::sm80

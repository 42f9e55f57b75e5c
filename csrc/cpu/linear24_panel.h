// linear24 with tokens on the lanes: for many tokens.
//
// x is packed into panels of an input block x some vectors of tokens, which stay in the first-level cache. The sums of
// a few output rows are the registers; between input blocks they rest in a chunk of rows that fits the second-level
// cache.
//
// A Scheme says how a panel is filled and multiplied with a tile of the weight:
//   Vector, Element  registers of floats, and what x and the weight are made of
//   Tile             the weight of W rows and one block; they are stored [input block][row tile]
//   inputs           of a block
//   panel_vectors    registers of tokens in a panel, at most
//   chunk_units      of unit_rows rows, whose sums rest between two blocks, at most
//   stride           floats from one row of sums to the next
//   block_floats     floats of a block's panel
//   pack_strip       writes W tokens into the panels of all blocks
//   multiply_for     the function that multiplies a tile with a panel of so many vectors
#pragma once
#include "linear24_activation.h"
#include "linear24_common.h"

namespace vlprune {
namespace {

template <class Scheme>
struct Panel {
    using V = typename Scheme::Vector;
    using Element = typename Scheme::Element;
    using reg = typename V::reg;
    static constexpr int W = V::width;
    static constexpr int stride = Scheme::stride;
    static constexpr int unit_rows = 16;  // rows finished together: a cache line of float32 output
    static constexpr int unit_tiles = unit_rows / W;
    static constexpr int chunk_units = Scheme::chunk_units;

    // Lanes past the last token repeat it: they are computed and never stored.
    static void pack(const Linear24& p, int64_t token, int64_t tokens, float* panels) {
        for (int64_t strip = 0; strip < tokens; strip += W) {
            const Element* rows[W];
            for (int t = 0; t < W; ++t)
                rows[t] = static_cast<const Element*>(p.x) + (token + least(strip + t, tokens - 1)) * p.ldx;
            Scheme::pack_strip(p, rows, panels + strip);
        }
    }

    // Activation, transpose, residual and store of a tile of sums for up to W tokens.
    static void finish_tile(const Linear24& p, const float* sums, int64_t token, int64_t tokens, int64_t first) {
        reg square[W];
        for (int r = 0; r < W; ++r) square[r] = activate<V>(V::load(sums + r * stride), p.activation);
        V::transpose(square);
        const int64_t at = token * p.out + first, rows = least(W, p.out - first);
        if (tokens == W && rows == W) {
            for (int t = 0; t < W; ++t) store_outputs<V, Element>(p, at + t * p.out, W, square[t]);
        } else {
            for (int t = 0; t < static_cast<int>(tokens); ++t)
                store_outputs<V, Element>(p, at + t * p.out, rows, square[t]);
        }
    }

    // A strip of tokens at a time: y's rows are often a multiple of 4 KB apart, so that lines of many tokens push each
    // other out of the first-level cache, and their pages out of its TLB. One core of Zen 3 gains 6 %.
    static void finish(const Linear24& p, const float* sums, int64_t token, int64_t tokens, int64_t first_unit,
                       int64_t last_unit) {
        for (int64_t strip = 0; strip < tokens; strip += W) {
            const int64_t count = least(W, tokens - strip);
            const float* from = sums + strip;
            for (int64_t row = first_unit * unit_rows; row < last_unit * unit_rows; row += unit_rows) {
                if (row + unit_rows < last_unit * unit_rows) {
                    const auto* ahead = static_cast<const Element*>(p.y) + (token + strip) * p.out + row + unit_rows;
                    for (int64_t t = 0; t < count; ++t) V::prefetch_to_write(ahead + t * p.out);
                    for (int r = 0; r < unit_rows; ++r) V::prefetch(from + (unit_rows + r) * stride);
                }
                for (int tile = 0; tile < unit_tiles; ++tile, from += W * stride) {
                    const int64_t first = row + tile * W;
                    if (first < p.out) finish_tile(p, from, token + strip, count, first);
                }
            }
        }
    }

    static void run_rows(const Linear24& p, const float* panels, float* sums, int64_t token, int64_t tokens,
                         int64_t first_unit, int64_t last_unit) {
        const int64_t tiles = ceil_div(p.out, W), input_blocks = ceil_div(p.in, Scheme::inputs);
        const auto* weight = static_cast<const typename Scheme::Tile*>(p.prepared);
        const auto multiply = Scheme::multiply_for(ceil_div(tokens, W));
        const int64_t first_tile = first_unit * unit_tiles, last_tile = least(tiles, last_unit * unit_tiles);
        for (int64_t k = 0; k < input_blocks; ++k) {
            const float* panel = panels + k * Scheme::block_floats;
            for (int64_t tile = first_tile; tile < last_tile; ++tile) {
                float bias[W];
                if (k == 0) load_bias<V, Element>(p.bias, tile * W, p.out, bias);
                multiply(panel, weight[k * tiles + tile], k == 0 ? bias : nullptr,
                         sums + (tile - first_tile) * W * stride);
            }
        }
        finish(p, sums, token, tokens, first_unit, last_unit);
    }

    // The work is the sequence (token block, unit of rows). Token blocks differ by a vector at most, and a part's
    // share is cut by what its units cost, in vectors.
    struct Work {
        int64_t vectors, token_blocks, units;

        int64_t first_vector(int64_t block) const { return vectors * block / token_blocks; }
        // The first unit of a part's share; for part == parts the end of the last.
        int64_t begin(int64_t part, int64_t parts) const {
            const int64_t cost = vectors * units * part / parts;
            int64_t block = least(token_blocks - 1, cost / units * token_blocks / vectors);
            while (first_vector(block + 1) * units <= cost && block + 1 < token_blocks) ++block;
            const int64_t height = first_vector(block + 1) - first_vector(block);
            return block * units + (cost - first_vector(block) * units) / height;
        }
    };

    // A run of units of one token block.
    struct Piece {
        int64_t block, first, last;
    };

    // The next piece for `part`, of its own share or else of what others have not come to. A piece loads every
    // panel once, so it is as large as the sums' chunk allows; but at most half of what is left of the share, down
    // to 128 rows, so that the parts end together.
    static bool next(const Linear24& p, const Work& work, int part, int parts, Piece& piece) {
        for (int i = 0; i < parts; ++i) {
            const int owner = part + i < parts ? part + i : part + i - parts;
            const int64_t begin = work.begin(owner, parts), end = work.begin(owner + 1, parts);
            int64_t* claimed = &p.cursors[owner].claimed;
            int64_t done = __atomic_load_n(claimed, __ATOMIC_RELAXED);
            while (done < end - begin) {
                const int64_t at = begin + done, first = at % work.units;
                const int64_t left = least(end - at, work.units - first);
                const int64_t half = parts == 1 ? left : most(8, (end - at + 1) / 2);
                const int64_t taken = least(ceil_div(left, ceil_div(left, chunk_units)), least(left, half));
                if (__atomic_compare_exchange_n(claimed, &done, done + taken, false, __ATOMIC_RELAXED,
                                                __ATOMIC_RELAXED)) {
                    piece = {at / work.units, first, first + taken};
                    return true;
                }
            }
        }
        return false;
    }

    static void run(const Linear24& p, int part, int parts) {
        const int64_t vectors = ceil_div(p.tokens, W), units = ceil_div(p.out, unit_rows);
        const int64_t token_blocks =
            most(ceil_div(vectors, Scheme::panel_vectors), least(vectors, ceil_div(parts, units)));
        const Work work{vectors, token_blocks, units};
        const size_t panel_floats = static_cast<size_t>(ceil_div(p.in, Scheme::inputs) * Scheme::block_floats);
        float* panels = nullptr;
        int64_t packed = -1, token = 0, tokens = 0;
        for (Piece piece; next(p, work, part, parts, piece);) {
            if (panels == nullptr)
                panels = static_cast<float*>(
                    linear24_workspace((panel_floats + chunk_units * unit_rows * stride) * sizeof(float)));
            if (piece.block != packed) {
                token = work.first_vector(piece.block) * W;
                tokens = least(work.first_vector(piece.block + 1) * W, p.tokens) - token;
                pack(p, token, tokens, panels);
                packed = piece.block;
            }
            run_rows(p, panels, panels + panel_floats, token, tokens, piece.first, piece.last);
        }
    }
};

}  // namespace
}  // namespace vlprune

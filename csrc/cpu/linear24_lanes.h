// linear24 with outputs on the lanes: for few tokens.
//
// The four inputs of a group are broadcast to every 128-bit lane, a 2-bit pick chooses per output, and the
// packed values multiply: no transposes, any number of tokens from one up, rows of y are written as they are.
#pragma once
#include "linear24_activation.h"
#include "linear24_blocks.h"

namespace vlprune {
namespace {

template <class V, class Element>
struct Lanes {
    using B = Block<V, Element>;
    using reg = typename V::reg;
    static constexpr int W = V::width;
    static constexpr int token_registers = 8;
    static constexpr int64_t run_blocks = 12;  // 768 inputs of a row tile stay in the first-level cache
    static constexpr int64_t resident_bytes = 256 * 1024;  // of x, in the second-level cache

    // What `tokens` registers of sums need of a row tile: values as vectors, a pick for every eight groups.
    struct Expanded {
        float values[run_blocks * block_kept][W];
        uint32_t picks[run_blocks * block_picks][W];
    };

    static void expand(const B* block, int64_t tiles, int64_t groups, Expanded& to) {
        for (int64_t k = 0; k * block_groups < groups; ++k, block += tiles) {
            std::memcpy(to.picks[k * block_picks], block->picks, sizeof block->picks);
            for (int kept = 0; kept < block_kept; kept += W) {
                reg square[W];
                for (int r = 0; r < W; ++r) square[r] = V::load(block->rows[r].values + kept);
                V::transpose(square);
                for (int i = 0; i < W; ++i)
                    V::store(to.values[k * block_kept + kept_at(kept + i, block->rows[0].values)], square[i]);
            }
        }
    }

    template <int tokens>
    static void multiply(const float* x, int64_t ldx, const Expanded& weight, int64_t groups, const float* start,
                         int64_t start_stride, float* sums) {
        reg sum[tokens];
        for (int t = 0; t < tokens; ++t) sum[t] = V::load(start + t * start_stride);
        for (int64_t first = 0; first < groups; first += groups_per_pick) {
            auto picks = V::load_bits(weight.picks[first / groups_per_pick]);
            const int64_t end = least(first + groups_per_pick, groups);
            for (int64_t g = first; g < end; ++g, x += 4) {
                const reg low = V::load(weight.values[2 * g]), high = V::load(weight.values[2 * g + 1]);
                const auto high_picks = V::template shift_right<2>(picks);
                for (int t = 0; t < tokens; ++t) {
                    const reg inputs = V::broadcast4(x + t * ldx);
                    sum[t] = V::fma(V::pick(inputs, picks), low, sum[t]);
                    sum[t] = V::fma(V::pick(inputs, high_picks), high, sum[t]);
                }
                picks = V::template shift_right<4>(picks);
            }
        }
        for (int t = 0; t < tokens; ++t) V::store(sums + t * W, sum[t]);
    }

    using Multiply = void (*)(const float*, int64_t, const Expanded&, int64_t, const float*, int64_t, float*);
    static Multiply multiply_for(int64_t tokens) {
        static constexpr Multiply table[] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>,
                                             multiply<5>, multiply<6>, multiply<7>, multiply<8>};
        return table[tokens - 1];
    }

    // One row tile for `tokens` tokens whose inputs start at x.
    static void run_tile(const Linear24& p, const float* x, int64_t ldx, int64_t token, int64_t tokens, int64_t tile,
                         Expanded& weight, float* sums) {
        const int64_t tiles = ceil_div(p.out, W), input_blocks = ceil_div(p.in, block_inputs);
        const auto* blocks = static_cast<const B*>(p.prepared);
        float bias[W];
        load_bias<V, Element>(p.bias, tile * W, p.out, bias);
        const int64_t splits = ceil_div(tokens, token_registers);
        for (int64_t k = 0; k < input_blocks; k += run_blocks) {
            const int64_t groups = least(run_blocks * block_groups, p.in / 4 - k * block_groups);
            expand(blocks + k * tiles + tile, tiles, groups, weight);
            for (int64_t s = 0; s < splits; ++s) {
                const int64_t t = tokens * s / splits, count = tokens * (s + 1) / splits - t;
                multiply_for(count)(x + t * ldx + k * block_inputs, ldx, weight, groups,
                                    k == 0 ? bias : sums + t * W, k == 0 ? 0 : W, sums + t * W);
            }
        }
        const int64_t at = token * p.out + tile * W, rows = least(W, p.out - tile * W);
        for (int64_t t = 0; t < tokens; ++t)
            store_outputs<V, Element>(p, at + t * p.out, rows, activate<V>(V::load(sums + t * W), p.activation));
    }

    static const float* as_float(const Linear24& p, const float* x, int64_t token, int64_t, float*, int64_t* ldx) {
        *ldx = p.ldx;
        return x + token * p.ldx;
    }
    static const float* as_float(const Linear24& p, const uint16_t* x, int64_t token, int64_t tokens, float* to,
                                 int64_t* ldx) {
        *ldx = p.in;
        for (int64_t t = 0; t < tokens; ++t) {
            const uint16_t* from = x + (token + t) * p.ldx;
            int64_t i = 0;
            for (; i + W <= p.in; i += W) V::store(to + t * p.in + i, V::load(from + i));
            uint16_t rest[W] = {};
            float line[W];
            std::memcpy(rest, from + i, sizeof(uint16_t) * static_cast<size_t>(p.in - i));
            V::store(line, V::load(rest));
            std::memcpy(to + t * p.in + i, line, sizeof(float) * static_cast<size_t>(p.in - i));
        }
        return to;
    }

    // The work is the sequence (run of tokens that fits the cache, row tile), cut into equal parts.
    static void run(const Linear24& p, int part, int parts) {
        const int64_t tiles = ceil_div(p.out, W);
        const int64_t resident = most(token_registers, resident_bytes / (p.in * int64_t(sizeof(float))));
        int64_t runs = ceil_div(p.tokens, resident);
        runs = most(runs, least(p.tokens, ceil_div(parts, tiles)));
        const int64_t total = runs * tiles, begin = total * part / parts, end = total * (part + 1) / parts;
        if (begin == end) return;
        const int64_t longest = ceil_div(p.tokens, runs);
        const int64_t copied = sizeof(Element) == sizeof(float) ? 0 : longest * p.in;
        auto* weight = static_cast<Expanded*>(
            linear24_workspace(sizeof(Expanded) + static_cast<size_t>(longest * W + copied) * sizeof(float)));
        auto* sums = reinterpret_cast<float*>(weight + 1);
        for (int64_t at = begin; at < end;) {
            const int64_t run = at / tiles, stop = least(end, (run + 1) * tiles);
            const int64_t token = p.tokens * run / runs, tokens = p.tokens * (run + 1) / runs - token;
            int64_t ldx;
            const float* x =
                as_float(p, static_cast<const Element*>(p.x), token, tokens, sums + longest * W, &ldx);
            for (; at < stop; ++at) run_tile(p, x, ldx, token, tokens, at - run * tiles, *weight, sums);
        }
    }
};

}  // namespace
}  // namespace vlprune

// linear24 with outputs on the lanes: for few tokens.
//
// The four inputs of a group are broadcast to every 128-bit lane, a 2-bit pick chooses per output, and the
// packed values multiply: no transposes, any number of tokens from one up, rows of y are written as they are.
#pragma once
#include "linear24_activation.h"
#include "linear24_steps.h"

namespace vlprune {
namespace {

// The values of a group as registers, a lane an output.
template <class V>
struct GroupValues {
    typename V::reg low, high;
};
template <class V>
inline GroupValues<V> group_values(const float* values) {
    return {V::load(values), V::load(values + V::width)};
}
template <class V>
inline GroupValues<V> group_values(const uint16_t* values) {
    const auto words = V::load_bits(values);
    return {V::from_bits(V::template shift_left<16>(words)), V::high_half(words)};
}

template <class V, class Element>
struct Lanes {
    using Weight = Step<V, Element>;
    using reg = typename V::reg;
    static constexpr int W = V::width;
    static constexpr int token_registers = 8;
    static constexpr int64_t run_steps = 24;  // 768 inputs of a row tile stay in the first-level cache
    static constexpr int64_t resident_bytes = 256 * 1024;  // of x, in the second-level cache

    template <int tokens>
    static void multiply(const float* x, int64_t ldx, const Weight* step, int64_t groups, const float* start,
                         int64_t start_stride, float* sums) {
        reg sum[tokens];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; ++t) sum[t] = V::load(start + t * start_stride);
        for (; groups > 0; groups -= step_groups, ++step) {
            if constexpr (V::prefetches_few) V::template prefetch_stream<sizeof(Weight), 2 * sizeof(Weight)>(step);
            auto picks = V::load_bits(step->picks);
            const int count = static_cast<int>(least(step_groups, groups));
            for (int g = 0; g < count; ++g, x += 4) {
                const GroupValues<V> values = group_values<V>(step->values[g]);
                const auto high_picks = V::template shift_right<2>(picks);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; ++t) {
                    const reg inputs = V::broadcast4(x + t * ldx);
                    sum[t] = V::fma(V::pick(inputs, picks), values.low, sum[t]);
                    sum[t] = V::fma(V::pick(inputs, high_picks), values.high, sum[t]);
                }
                picks = V::template shift_right<4>(picks);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; ++t) V::store(sums + t * W, sum[t]);
    }

    using Multiply = void (*)(const float*, int64_t, const Weight*, int64_t, const float*, int64_t, float*);
    static Multiply multiply_for(int64_t tokens) {
        static constexpr Multiply table[] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>,
                                             multiply<5>, multiply<6>, multiply<7>, multiply<8>};
        return table[tokens - 1];
    }

    // One row tile for `tokens` tokens whose inputs start at x.
    static void run_tile(const Linear24& p, const float* x, int64_t ldx, int64_t token, int64_t tokens, int64_t tile,
                         float* sums) {
        const int64_t steps = Weight::in_row_tile(p.in);
        const auto* weight = static_cast<const Weight*>(p.prepared) + tile * steps;
        float bias[W];
        load_bias<V, Element>(p.bias, tile * W, p.out, bias);
        const int64_t splits = ceil_div(tokens, token_registers);
        for (int64_t k = 0; k < steps; k += run_steps) {
            const int64_t groups = least(run_steps * step_groups, p.in / 4 - k * step_groups);
            for (int64_t s = 0; s < splits; ++s) {
                const int64_t t = tokens * s / splits, count = tokens * (s + 1) / splits - t;
                multiply_for(count)(x + t * ldx + k * step_inputs, ldx, weight + k, groups,
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
        auto* sums =
            static_cast<float*>(linear24_workspace(static_cast<size_t>(longest * W + copied) * sizeof(float)));
        for (int64_t at = begin; at < end;) {
            const int64_t run = at / tiles, stop = least(end, (run + 1) * tiles);
            const int64_t token = p.tokens * run / runs, tokens = p.tokens * (run + 1) / runs - token;
            int64_t ldx;
            const float* x =
                as_float(p, static_cast<const Element*>(p.x), token, tokens, sums + longest * W, &ldx);
            for (; at < stop; ++at) run_tile(p, x, ldx, token, tokens, at - run * tiles, sums);
        }
    }
};

}  // namespace
}  // namespace vlprune

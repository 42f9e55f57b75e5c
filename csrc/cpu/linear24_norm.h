// Layer norm on the way into the panel of tokens: what is normalized never goes to memory.
#pragma once
#include <cmath>

#include "linear24_common.h"

namespace vlprune {
namespace {

// x[token, input ...] as a register; past the last input `fill`.
template <class V, class Element>
inline typename V::reg load_inputs(const Element* row, int64_t input, int64_t in, Element fill = {}) {
    if (input + V::width <= in) return V::load(row + input);
    Element rest[V::width];
    for (int i = 0; i < V::width; ++i) rest[i] = input + i < in ? row[input + i] : fill;
    return V::load(rest);
}

// Of W tokens, one a lane: y = (x - mean) / sqrt(variance + eps) * weight + bias.
template <class V>
struct LayerNormLanes {
    using reg = typename V::reg;
    static constexpr int W = V::width;
    const LayerNorm& norm;
    reg mean, scale;

    // The mean first and then the squares around it: a difference of sums would lose digits. A token's sum is spread
    // over the lanes of a register; the transposed square of them adds up token by token.
    LayerNormLanes(const LayerNorm& given, const float* const (&rows)[W], int64_t in) : norm(given) {
        const reg count = V::set1(static_cast<float>(in));
        reg sums[W];
        for (reg& sum : sums) sum = V::set1(0.0f);
        for (int64_t i = 0; i < in; i += W)
            for (int t = 0; t < W; ++t) sums[t] = V::add(sums[t], load_inputs<V>(rows[t], i, in));
        mean = V::div(added(sums), count);
        float means[W];
        V::store(means, mean);
        for (reg& sum : sums) sum = V::set1(0.0f);
        for (int64_t i = 0; i < in; i += W)
            for (int t = 0; t < W; ++t) {
                const reg off = V::sub(load_inputs<V>(rows[t], i, in, means[t]), V::set1(means[t]));
                sums[t] = V::fma(off, off, sums[t]);
            }
        float scales[W];
        V::store(scales, V::add(V::div(added(sums), count), V::set1(norm.eps)));
        for (float& s : scales) s = 1.0f / std::sqrt(s);
        scale = V::load(scales);
    }

    static reg added(reg (&sums)[W]) {
        V::transpose(sums);
        reg sum = sums[0];
        for (int i = 1; i < W; ++i) sum = V::add(sum, sums[i]);
        return sum;
    }

    // An input of every token.
    reg operator()(reg x, int64_t input) const {
        const reg y = V::mul(V::sub(x, mean), scale);
        return V::fma(y, V::set1(norm.weight[input]), V::set1(norm.bias[input]));
    }
};

}  // namespace
}  // namespace vlprune

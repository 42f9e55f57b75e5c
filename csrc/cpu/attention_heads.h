// head_attention for short sequences: one head of one sequence at a time, its keys and values in the nearest caches.
//
// The keys are transposed into strips of two vectors, the values copied together. Up to six queries then share every
// register of keys and of values that is loaded, twelve sums in registers, and their scores stay in the first-level
// cache between the two products.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>

#include "attention.h"
#include "linear24_activation.h"
#include "linear24_common.h"

namespace vlprune {
namespace {

template <class V, class Element>
struct Heads {
    using reg = typename V::reg;
    static constexpr int W = V::width;
    static constexpr int strip = 2 * W;
    static constexpr int queries = 6;
    static_assert(queries <= W, "their lanes are combined in one square");

    // c[r, :] = factor[r] * sum_i a[r, i] * b[i, :], `vectors` registers wide.
    template <int rows, int vectors>
    static void product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t terms, const float* factor,
                        float* c, int64_t ldc) {
        reg sum[rows][vectors];
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) sum[r][v] = V::set1(0.0f);
        for (int64_t i = 0; i < terms; ++i, b += ldb) {
            reg shared[vectors];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) shared[v] = V::load(b + v * W);
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) {
                const reg own = V::set1(a[r * lda + i]);
#pragma GCC unroll 2
                for (int v = 0; v < vectors; ++v) sum[r][v] = V::fma(own, shared[v], sum[r][v]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v)
                V::store(c + r * ldc + v * W, V::mul(V::set1(factor[r]), sum[r][v]));
    }

    using Product = void (*)(const float*, int64_t, const float*, int64_t, int64_t, const float*, float*, int64_t);
    static Product product_for(int64_t rows, int64_t vectors) {
        static constexpr Product table[2][queries] = {
            {product<1, 1>, product<2, 1>, product<3, 1>, product<4, 1>, product<5, 1>, product<6, 1>},
            {product<1, 2>, product<2, 2>, product<3, 2>, product<4, 2>, product<5, 2>, product<6, 2>}};
        return table[vectors - 1][rows - 1];
    }

    struct Scratch {
        float *keys, *values, *scores, *asked, *line;
        int64_t strips, width;  // strips of keys; floats from one value to the next
    };

    static constexpr bool as_floats = std::is_same_v<Element, float>;

    static reg load_partly(const Element* row, int64_t count) {
        if (count >= W) return V::load(row);
        Element entries[W] = {};
        std::memcpy(entries, row, sizeof(Element) * static_cast<size_t>(count));
        return V::load(entries);
    }
    static void store_partly(Element* row, reg value, int64_t count) {
        if (count >= W) return V::store(row, value);
        Element entries[W];
        V::store(entries, value);
        std::memcpy(row, entries, sizeof(Element) * static_cast<size_t>(count));
    }

    // Keys past the last repeat it: their scores are computed and not used.
    static void pack(const Attention& p, const Element* k, const Element* v, const Scratch& to) {
        for (int64_t key = 0; key < p.length; key += W) {
            float* column = to.keys + key / strip * strip * p.dim + key % strip;
            for (int64_t i = 0; i < p.dim; i += W) {
                reg square[W];
                for (int t = 0; t < W; ++t)
                    square[t] = load_partly(k + least(key + t, p.length - 1) * p.token_stride + i, p.dim - i);
                V::transpose(square);
                for (int64_t j = 0; j < least(W, p.dim - i); ++j) V::store(column + (i + j) * strip, square[j]);
            }
        }
        for (int64_t t = 0; t < p.length; ++t)
            for (int64_t i = 0; i < p.dim; i += W)
                V::store(to.values + t * to.width + i, load_partly(v + t * p.token_stride + i, p.dim - i));
    }

    // One row's lanes are a chain of operations, so those of all rows are combined at once.
    template <class Combine>
    static void across(reg (&rows)[W], Combine combine, float* to) {
        V::transpose(rows);
        reg all = rows[0];
        for (int i = 1; i < W; ++i) all = combine(all, rows[i]);
        V::store(to, all);
    }

    // Scores to e^(score - largest) in place, zero from what a row sees to `read`; factor is one over their sum.
    // The first row sees `visible` keys, each of the others `more` than the one before.
    static void soften(float* scores, int64_t row_floats, int64_t rows, int64_t visible, int64_t more, int64_t read,
                       float* factor) {
        reg each[W];
        float lanes[W];
        for (reg& row : each) row = V::set1(1.0f);
        for (int64_t r = 0; r < rows; ++r) {
            float* row = scores + r * row_floats;
            const int64_t sees = visible + r * more, end = ceil_div(sees, W) * W;
            for (int64_t j = sees; j < end; ++j) row[j] = -INFINITY;
            each[r] = V::load(row);
            for (int64_t j = W; j < end; j += W) each[r] = V::max(each[r], V::load(row + j));
        }
        across(each, V::max, lanes);
        for (int64_t r = 0; r < rows; ++r) {
            float* row = scores + r * row_floats;
            const int64_t sees = visible + r * more, end = ceil_div(sees, W) * W;
            const reg largest = V::set1(lanes[r]);
            reg sum = V::set1(0.0f);
            for (int64_t j = 0; j < end; j += W) {
                const reg e = exp_clamped<V>(V::sub(V::load(row + j), largest));
                V::store(row + j, e);
                sum = V::add(sum, e);
            }
            each[r] = sum;
            for (int64_t j = sees; j < read; ++j) row[j] = 0.0f;
        }
        across(each, V::add, lanes);
        for (int64_t r = 0; r < rows; ++r) factor[r] = 1.0f / lanes[r];
    }

    // The queries as floats, and from one to the next.
    static const float* asked(const Attention& p, const float* q, int64_t, const Scratch&, int64_t& stride) {
        stride = p.token_stride;
        return q;
    }
    static const float* asked(const Attention& p, const uint16_t* q, int64_t rows, const Scratch& s, int64_t& stride) {
        stride = s.width;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < p.dim; i += W)
                V::store(s.asked + r * stride + i, load_partly(q + r * p.token_stride + i, p.dim - i));
        return s.asked;
    }

    static void attend(const Attention& p, const Element* q, Element* out, int64_t first, int64_t last,
                       const Scratch& s) {
        const int64_t rows = last - first, read = p.causal ? last : p.length, row_floats = s.strips * strip;
        const int64_t out_stride = p.heads * p.dim;
        int64_t q_stride;
        const float* own = asked(p, q + first * p.token_stride, rows, s, q_stride);
        float factor[queries];
        for (float& f : factor) f = p.scale;
        for (int64_t key = 0; key < read; key += strip)
            product_for(rows, read - key > W ? 2 : 1)(own, q_stride, s.keys + key * p.dim, strip, p.dim, factor,
                                                     s.scores + key, row_floats);
        soften(s.scores, row_floats, rows, p.causal ? first + 1 : read, p.causal ? 1 : 0, read, factor);
        for (int64_t i = 0; i < p.dim; i += strip) {
            const int64_t vectors = p.dim - i > W ? 2 : 1;
            Element* to = out + first * out_stride + i;
            const auto multiply = product_for(rows, vectors);
            if constexpr (as_floats) {
                if (i + vectors * W <= p.dim) {
                    multiply(s.scores, row_floats, s.values + i, s.width, read, factor, to, out_stride);
                    continue;
                }
            }
            multiply(s.scores, row_floats, s.values + i, s.width, read, factor, s.line, strip);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t v = 0; v < vectors; ++v)
                    store_partly(to + r * out_stride + v * W, V::load(s.line + r * strip + v * W), p.dim - i - v * W);
        }
    }

    // Some tokens of a head, which no processor sees coming: they are a projection's width apart.
    static void prefetch(const Attention& p, const Element* q, int64_t first, int64_t last) {
        constexpr int64_t line = 64 / sizeof(Element);
        for (int64_t t = first; t < last; ++t)
            for (int64_t part = 0; part < 3; ++part)
                for (int64_t i = 0; i < p.dim; i += line)
                    V::prefetch(q + t * p.token_stride + part * p.heads * p.dim + i);
    }

    static Scratch scratch_for(const Attention& p) {
        const int64_t strips = ceil_div(p.length, strip), width = ceil_div(p.dim, W) * W;
        const int64_t keys = strips * strip * p.dim, values = p.length * width, scores = queries * strips * strip;
        const int64_t asked = as_floats ? 0 : queries * width;
        const auto floats = static_cast<size_t>(keys + values + scores + asked + queries * strip);
        auto* memory = static_cast<float*>(linear24_workspace(sizeof(float) * floats));
        float *v = memory + keys, *at = v + values, *q = at + scores;
        return {memory, v, at, q, q + asked, strips, width};
    }

    static void run(const Attention& p, int parts) {
        const int64_t total = p.batch * p.heads, inner = p.heads * p.dim, blocks = ceil_div(p.length, queries);
        const auto claim = [&p] { return __atomic_fetch_add(p.claimed, 1, __ATOMIC_RELAXED); };
        const auto query_of = [&p](int64_t at) {
            return static_cast<const Element*>(p.qkv) + at / p.heads * p.batch_stride + at % p.heads * p.dim;
        };
        int64_t at = claim();
        if (at >= total) return;
        const Scratch s = scratch_for(p);
        while (at < total) {
            // The next one now, to be prefetched, but only while there is one for every thread.
            const bool ahead = __atomic_load_n(p.claimed, __ATOMIC_RELAXED) + parts <= total;
            const int64_t next = ahead ? claim() : total;
            const Element* q = query_of(at);
            pack(p, q + inner, q + 2 * inner, s);
            Element* out = static_cast<Element*>(p.out) + at / p.heads * p.length * inner + at % p.heads * p.dim;
            for (int64_t b = 0; b < blocks; ++b) {
                const int64_t first = p.length * b / blocks, last = p.length * (b + 1) / blocks;
                if (next < total) prefetch(p, query_of(next), first, last);
                attend(p, q, out, first, last, s);
            }
            at = ahead ? next : claim();
        }
    }
};

}  // namespace
}  // namespace vlprune

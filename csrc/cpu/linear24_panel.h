// linear24 with tokens on the lanes: for many tokens.
//
// x is packed into panels of 64 inputs x panel_tokens, small enough to stay in the first-level cache. For
// each kept weight: one offset, one broadcast, and for every vector of tokens one multiply-add whose operand
// is read from the panel. The sums of one output row are the registers; between input blocks they rest in a
// chunk of rows that fits the second-level cache.
#pragma once
#include "linear24_activation.h"
#include "linear24_blocks.h"

namespace vlprune {
namespace {

template <class V, class Element>
struct Panel {
    using B = Block<V, Element>;
    using reg = typename V::reg;
    static constexpr int W = V::width;
    static constexpr int stride = panel_tokens<V>;  // floats in a panel row, and in a row of sums
    static constexpr int unit_rows = 16;            // rows finished together: a cache line of float32 output
    static constexpr int unit_tiles = unit_rows / W;
    static constexpr int chunk_units = 16;

    // x[token, input ...] as a register; past the last input zeros.
    static reg load_inputs(const Element* row, int64_t input, int64_t in) {
        if (input + W <= in) return V::load(row + input);
        Element rest[W] = {};
        std::memcpy(rest, row + input, sizeof(Element) * static_cast<size_t>(in - input));
        return V::load(rest);
    }

    // Lanes past the last token repeat it: they are computed and never stored.
    static void pack(const Linear24& p, int64_t token, int64_t tokens, float* panels) {
        for (int64_t strip = 0; strip < tokens; strip += W) {
            const Element* rows[W];
            for (int t = 0; t < W; ++t)
                rows[t] = static_cast<const Element*>(p.x) + (token + least(strip + t, tokens - 1)) * p.ldx;
            for (int64_t input = 0; input < p.in; input += W) {
                reg square[W];
                for (int t = 0; t < W; ++t) square[t] = load_inputs(rows[t], input, p.in);
                V::transpose(square);
                float* to = panels + input * stride + strip;
                for (int i = 0; i < W; ++i) V::store(to + i * stride, square[i]);
            }
        }
    }

    // `rows` rows at a time so that enough sums are in flight to cover the multiply-add's latency.
    template <int vectors, int rows>
    static void multiply(const float* panel, const B& block, int kept, const float* start, float* sums) {
        const char* base = reinterpret_cast<const char*>(panel);
        for (int row = 0; row < W; row += rows) {
            reg sum[rows][vectors];
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < vectors; ++v)
                    sum[r][v] = start ? V::set1(start[row + r]) : V::load(sums + (row + r) * stride + v * W);
            for (int k = 0; k < kept; k += 2) {
                for (int slot = 0; slot < 2; ++slot) {
                    for (int r = 0; r < rows; ++r) {
                        const float* x = reinterpret_cast<const float*>(base + block.offset(k + slot, row + r));
                        const reg w = block.by_row(k + slot, row + r);
                        for (int v = 0; v < vectors; ++v) sum[r][v] = V::fma(w, V::load(x + v * W), sum[r][v]);
                    }
                }
            }
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < vectors; ++v) V::store(sums + (row + r) * stride + v * W, sum[r][v]);
        }
    }

    using Multiply = void (*)(const float*, const B&, int, const float*, float*);
    static Multiply multiply_for(int64_t vectors) {
        static constexpr Multiply table[] = {
            multiply<1, 8>, multiply<2, 4>, multiply<3, 4>, multiply<4, 2>,  multiply<5, 2>,  multiply<6, 2>,
            multiply<7, 2>, multiply<8, 1>, multiply<9, 1>, multiply<10, 1>, multiply<11, 1>, multiply<12, 1>,
        };
        static_assert(V::panel_vectors <= 12, "one entry for each count of vectors");
        return table[vectors - 1];
    }

    // Activation, transpose and store of 16 rows of sums.
    static void finish(const Linear24& p, const float* sums, int64_t token, int64_t tokens, int64_t row) {
        auto* y = static_cast<Element*>(p.y);
        for (int64_t strip = 0; strip < tokens; strip += W) {
            for (int tile = 0; tile < unit_tiles; ++tile) {
                const int64_t first = row + tile * W, rows = least(W, p.out - first);
                if (rows <= 0) break;
                reg square[W];
                for (int r = 0; r < W; ++r)
                    square[r] = activate<V>(V::load(sums + (tile * W + r) * stride + strip), p.activation);
                V::transpose(square);
                const int count = static_cast<int>(least(W, tokens - strip));
                for (int t = 0; t < count; ++t) {
                    Element* to = y + (token + strip + t) * p.out + first;
                    if (rows == W) {
                        V::store(to, square[t]);
                    } else {
                        Element line[W];
                        V::store(line, square[t]);
                        std::memcpy(to, line, sizeof(Element) * static_cast<size_t>(rows));
                    }
                }
            }
        }
    }

    static void run_rows(const Linear24& p, const float* panels, float* sums, int64_t token, int64_t tokens,
                         int64_t first_unit, int64_t last_unit) {
        const int64_t tiles = ceil_div(p.out, W), input_blocks = ceil_div(p.in, block_inputs);
        const auto* blocks = static_cast<const B*>(p.prepared);
        const Multiply multiply_block = multiply_for(ceil_div(tokens, W));
        for (int64_t chunk = first_unit; chunk < last_unit; chunk += chunk_units) {
            const int64_t end = least(chunk + chunk_units, last_unit);
            for (int64_t k = 0; k < input_blocks; ++k) {
                const int kept = static_cast<int>(least(block_inputs, p.in - k * block_inputs)) / 2;
                const float* panel = panels + k * block_inputs * stride;
                for (int64_t unit = chunk; unit < end; ++unit) {
                    float* unit_sums = sums + (unit - chunk) * unit_rows * stride;
                    for (int i = 0; i < unit_tiles; ++i) {
                        const int64_t tile = unit * unit_tiles + i;
                        if (tile >= tiles) break;
                        float bias[W];
                        if (k == 0) load_bias<V, Element>(p.bias, tile * W, p.out, bias);
                        multiply_block(panel, blocks[k * tiles + tile], kept, k == 0 ? bias : nullptr,
                                       unit_sums + i * W * stride);
                    }
                    if (k == input_blocks - 1) finish(p, unit_sums, token, tokens, unit * unit_rows);
                }
            }
        }
    }

    // The work is the sequence (token block, unit of rows); each part takes an equal run of it, so few
    // tokens on many threads split over rows, and a token block is packed by no more parts than touch it.
    static void run(const Linear24& p, int part, int parts) {
        const int64_t vectors = ceil_div(p.tokens, W), units = ceil_div(p.out, unit_rows);
        int64_t token_blocks = ceil_div(vectors, V::panel_vectors);
        token_blocks = most(token_blocks, least(vectors, ceil_div(parts, units)));
        const int64_t total = token_blocks * units;
        const int64_t begin = total * part / parts, end = total * (part + 1) / parts;
        if (begin == end) return;
        const size_t panel_floats = static_cast<size_t>(ceil_div(p.in, block_inputs) * block_inputs * stride);
        auto* panels =
            static_cast<float*>(linear24_workspace((panel_floats + chunk_units * unit_rows * stride) * sizeof(float)));
        for (int64_t at = begin; at < end;) {
            const int64_t block = at / units, stop = least(end, (block + 1) * units);
            const int64_t token = vectors * block / token_blocks * W;
            const int64_t tokens = least(vectors * (block + 1) / token_blocks * W, p.tokens) - token;
            pack(p, token, tokens, panels);
            run_rows(p, panels, panels + panel_floats, token, tokens, at - block * units, stop - block * units);
            at = stop;
        }
    }
};

}  // namespace
}  // namespace vlprune

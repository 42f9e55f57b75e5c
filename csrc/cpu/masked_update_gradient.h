// The gradients of masked_update in A and B over some rows: B^T (G * M) and (G * M) A^T, G and its mask read once.
//
// Four rows by two vectors of masked G are registers. A rank takes them times B onto a panel of A's gradient, which
// stays in the caches as A does, and times A onto sums a row, whose lanes are added up where the strip ends.
#pragma once
#include <cstring>

#include "masked_update_rows.h"

namespace vlprune {
namespace {

template <class Lanes, class Element>
struct GradientRows {
    using reg = typename Lanes::reg;
    static constexpr int W = Lanes::width;
    static constexpr int64_t panel = 2 * W, block = 4;

    template <int rows>
    static void tile(const float* a, const float* b, int64_t rank, const Element* grad, const uint8_t* keep,
                     int64_t pitch, float* for_a, float* sums) {
        reg g[rows][2];
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < 2; ++v) {
                const int64_t at = r * pitch + v * W;
                g[r][v] = Lanes::load(grad + at);
                if (keep != nullptr) g[r][v] = Lanes::keep(g[r][v], keep + at);
            }
        for (int64_t k = 0; k < rank; ++k, a += panel, for_a += panel, sums += rows * W) {
            const reg first = Lanes::load(a), second = Lanes::load(a + W);
            reg to_first = Lanes::load(for_a), to_second = Lanes::load(for_a + W);
            for (int r = 0; r < rows; ++r) {
                const reg factor = Lanes::set1(b[r * rank + k]);
                to_first = Lanes::fma(factor, g[r][0], to_first);
                to_second = Lanes::fma(factor, g[r][1], to_second);
                const reg sum = Lanes::fma(g[r][0], first, Lanes::load(sums + r * W));
                Lanes::store(sums + r * W, Lanes::fma(g[r][1], second, sum));
            }
            Lanes::store(for_a, to_first);
            Lanes::store(for_a + W, to_second);
        }
    }

    // Columns of the last panel, fewer than it has; the others are zeros.
    template <int rows>
    static void end(const float* a, const float* b, int64_t rank, const Element* grad, const uint8_t* keep,
                    int64_t pitch, int64_t left, float* for_a, float* sums) {
        Element from[rows * panel] = {};
        uint8_t kept[rows * panel] = {};
        for (int r = 0; r < rows; ++r) {
            std::memcpy(from + r * panel, grad + r * pitch, sizeof(Element) * size_t(left));
            if (keep != nullptr) std::memcpy(kept + r * panel, keep + r * pitch, size_t(left));
        }
        tile<rows>(a, b, rank, from, keep == nullptr ? nullptr : kept, panel, for_a, sums);
    }

    template <int rows>
    static void strip(const MaskedUpdateGradient& p, int64_t row, int64_t from, int64_t to, float* for_a,
                      float* sums) {
        const auto* grad = static_cast<const Element*>(p.grad) + row * p.cols;
        const uint8_t* keep = p.keep == nullptr ? nullptr : p.keep + row * p.cols;
        const float* b = p.b + row * p.rank;
        std::memset(sums, 0, sizeof(float) * size_t(p.rank * rows * W));
        for (int64_t j = from; j < to; j += panel) {
            const float* a = p.panels + j * p.rank;
            const uint8_t* kept = keep == nullptr ? nullptr : keep + j;
            if (j + panel <= to)
                tile<rows>(a, b, p.rank, grad + j, kept, p.cols, for_a + j * p.rank, sums);
            else
                end<rows>(a, b, p.rank, grad + j, kept, p.cols, to - j, for_a + j * p.rank, sums);
        }
        for (int64_t k = 0; k < p.rank; ++k)
            for (int r = 0; r < rows; ++r) {
                float sum = from == 0 ? 0.0f : p.for_b[(row + r) * p.rank + k];
                for (int i = 0; i < W; ++i) sum += sums[(k * rows + r) * W + i];
                p.for_b[(row + r) * p.rank + k] = sum;
            }
    }

    static void run(const MaskedUpdateGradient& p, int64_t first, int64_t last, float* for_a, float* sums) {
        const int64_t width = masked_update_strip(p.rank, p.cols, panel);
        for (int64_t from = 0; from < p.cols; from += width) {
            const int64_t to = from + width < p.cols ? from + width : p.cols;
            int64_t row = first;
            for (; row + block <= last; row += block) strip<block>(p, row, from, to, for_a, sums);
            for (; row < last; ++row) strip<1>(p, row, from, to, for_a, sums);
        }
    }
};

template <class Lanes>
constexpr MaskedUpdateVariant masked_update_by = {2 * Lanes::width, UpdatedRows<Lanes, float>::run,
                                                  UpdatedRows<Lanes, uint16_t>::run, GradientRows<Lanes, float>::run,
                                                  GradientRows<Lanes, uint16_t>::run};

}  // namespace
}  // namespace vlprune

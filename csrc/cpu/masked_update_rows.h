// masked_update over some rows: the weight, its mask and the result pass once, A stays in the caches.
//
// Four rows by two vectors of sums are registers: what is read of A serves four rows, a number of B two vectors. A is
// in panels of these two vectors, since its rows and those of the weight tend to be a power of two apart and would
// fill the same sets of the first-level cache: rank 8 took 2.1 times as long as a copy of the weights, in panels 1.5
// times (Zen 3). More or fewer rows, prefetching, stores past the caches changed nothing beyond the noise: what is left
// is memory. The product is summed by itself and then added, so that the weight is rounded but once.
// `Lanes` is a Vec that also has keep(x, bytes): x where a byte is not zero, +0.0 elsewhere.
#pragma once
#include <cstring>

#include "masked_update.h"

namespace vlprune {
namespace {

template <class Lanes, class Element>
struct UpdatedRows {
    using reg = typename Lanes::reg;
    static constexpr int W = Lanes::width;
    static constexpr int64_t panel = 2 * W, block = 4;

    template <int rows>
    static void tile(const float* a, const float* b, int64_t rank, const Element* weight, const uint8_t* keep,
                     Element* out, int64_t pitch) {
        reg sum[rows][2];
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < 2; ++v) sum[r][v] = Lanes::set1(0.0f);
        for (int64_t k = 0; k < rank; ++k) {
            reg columns[2];
            for (int v = 0; v < 2; ++v) columns[v] = Lanes::load(a + k * panel + v * W);
            for (int r = 0; r < rows; ++r) {
                const reg factor = Lanes::set1(b[r * rank + k]);
                for (int v = 0; v < 2; ++v) sum[r][v] = Lanes::fma(factor, columns[v], sum[r][v]);
            }
        }
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < 2; ++v) {
                const int64_t at = r * pitch + v * W;
                reg x = Lanes::load(weight + at);
                if (rank > 0) x = Lanes::add(x, sum[r][v]);
                if (keep != nullptr) x = Lanes::keep(x, keep + at);
                Lanes::store(out + at, x);
            }
    }

    // Columns of the last panel, fewer than it has.
    template <int rows>
    static void end(const float* a, const float* b, int64_t rank, const Element* weight, const uint8_t* keep,
                    Element* out, int64_t pitch, int64_t left) {
        Element from[rows * panel] = {}, to[rows * panel];
        uint8_t kept[rows * panel] = {};
        for (int r = 0; r < rows; ++r) {
            std::memcpy(from + r * panel, weight + r * pitch, sizeof(Element) * size_t(left));
            if (keep != nullptr) std::memcpy(kept + r * panel, keep + r * pitch, size_t(left));
        }
        tile<rows>(a, b, rank, from, keep == nullptr ? nullptr : kept, to, panel);
        for (int r = 0; r < rows; ++r)
            std::memcpy(out + r * pitch, to + r * panel, sizeof(Element) * size_t(left));
    }

    template <int rows>
    static void strip(const MaskedUpdate& p, int64_t row, int64_t from, int64_t to) {
        const auto* weight = static_cast<const Element*>(p.weight) + row * p.cols;
        const uint8_t* keep = p.keep == nullptr ? nullptr : p.keep + row * p.cols;
        auto* out = static_cast<Element*>(p.out) + row * p.cols;
        const float* b = p.b + row * p.rank;
        for (int64_t j = from; j < to; j += panel) {
            const float* a = p.panels + j * p.rank;
            const uint8_t* kept = keep == nullptr ? nullptr : keep + j;
            if (j + panel <= to)
                tile<rows>(a, b, p.rank, weight + j, kept, out + j, p.cols);
            else
                end<rows>(a, b, p.rank, weight + j, kept, out + j, p.cols, to - j);
        }
    }

    static void run(const MaskedUpdate& p, int64_t first, int64_t last) {
        const int64_t width = masked_update_strip(p.rank, p.cols, panel);
        for (int64_t from = 0; from < p.cols; from += width) {
            const int64_t to = from + width < p.cols ? from + width : p.cols;
            int64_t row = first;
            for (; row + block <= last; row += block) strip<block>(p, row, from, to);
            for (; row < last; ++row) strip<1>(p, row, from, to);
        }
    }
};

}  // namespace
}  // namespace vlprune

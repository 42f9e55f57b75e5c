#include <vector>

#include "ops.h"
#include "wanda_kernels.h"
#include "wanda_rows.h"

namespace vlprune {
namespace {

struct Matrix {
    const char* data;
    DType dtype;
    int64_t rows, cols;

    const void* row(int64_t index) const { return data + index * cols * item_size(dtype); }
};

// The whole matrix as one unit, in three passes over the weight: a histogram of the keys' upper halves finds
// the half in which the last pruned key lies, one of the lower halves finds the key, then the mask is written.
// What the passes hold is 256 KB a thread, not the scores.
class LayerSelection {
  public:
    LayerSelection(const Matrix& weight, const float* norm, int threads, const RowKernels& kernels)
        : weight_(weight),
          norm_(norm),
          kernels_(kernels),
          parts_(row_parts(weight.rows, weight.cols, threads)),
          histograms_(static_cast<size_t>(parts_) << 16),
          keys_(static_cast<size_t>(parts_ * weight.cols)) {}

    int64_t run(int64_t prune, bool* keep) {
        if (const int64_t refused = count([](int32_t) { return true; }, &upper_half); refused >= 0) return refused;
        if (prune == 0 || prune == weight_.rows * weight_.cols) {
            std::fill_n(keep, weight_.rows * weight_.cols, prune == 0);
            return -1;
        }
        int64_t left = prune;
        const uint32_t upper = find(&left);
        count([upper](int32_t key) { return upper_half(key) == upper; }, &lower_half);
        const uint32_t lower = find(&left);
        const int32_t threshold = static_cast<int32_t>((upper << 16 | lower) ^ 0x80000000u);

        // The first `left` entries equal to the threshold go: each part learns how many of them are its own.
        std::vector<int64_t> ties(static_cast<size_t>(parts_));
        for (int part = 0; part < parts_; ++part) {
            const int64_t equal = histogram(part)[lower];
            ties[static_cast<size_t>(part)] = std::min(left, equal);
            left -= ties[static_cast<size_t>(part)];
        }
        return for_rows(weight_.rows, weight_.cols, parts_, [&](int part, int64_t row) {
            int64_t& tie = ties[static_cast<size_t>(part)];
            kernels_.score_keys(weight_.row(row), weight_.dtype, weight_.cols, norm_, keys(part));
            tie = kernels_.keep_above(keys(part), weight_.cols, threshold, tie, keep + row * weight_.cols);
            return int64_t{-1};
        });
    }

  private:
    // As unsigned numbers in the order of the keys.
    static uint32_t upper_half(int32_t key) { return (static_cast<uint32_t>(key) ^ 0x80000000u) >> 16; }
    static uint32_t lower_half(int32_t key) { return static_cast<uint32_t>(key) & 0xFFFFu; }

    uint32_t* histogram(int part) { return histograms_.data() + (static_cast<size_t>(part) << 16); }
    int32_t* keys(int part) { return keys_.data() + part * weight_.cols; }

    template <class Wanted>
    int64_t count(const Wanted& wanted, uint32_t (*half)(int32_t)) {
        std::fill(histograms_.begin(), histograms_.end(), 0u);
        return for_rows(weight_.rows, weight_.cols, parts_, [&](int part, int64_t row) {
            int32_t* const key = keys(part);
            uint32_t* const bins = histogram(part);
            const int64_t refused = kernels_.score_keys(weight_.row(row), weight_.dtype, weight_.cols, norm_, key);
            if (refused >= 0) return refused;
            for (int64_t j = 0; j < weight_.cols; ++j)
                if (wanted(key[j])) ++bins[half(key[j])];
            return int64_t{-1};
        });
    }

    // The bin that holds the left-th counted entry; takes the entries of the bins before it off `left`.
    uint32_t find(int64_t* left) {
        for (uint32_t bin = 0;; ++bin) {
            int64_t total = 0;
            for (int part = 0; part < parts_; ++part) total += histogram(part)[bin];
            if (total >= *left) return bin;
            *left -= total;
        }
    }

    Matrix weight_;
    const float* norm_;
    const RowKernels& kernels_;
    int parts_;
    std::vector<uint32_t> histograms_;
    std::vector<int32_t> keys_;
};

}  // namespace

const RowKernels& row_kernels(Isa isa) {
#ifdef VLPRUNE_HAVE_AVX2
    if (isa != Isa::portable) return kRowKernelsAvx2;
#endif
    static_cast<void>(isa);
    return kRowKernelsPortable;
}

int64_t wanda_mask(const void* weight, DType dtype, int64_t rows, int64_t cols, const float* norm, int64_t group,
                   int64_t prune, bool* keep, int threads, Isa isa) {
    const RowKernels& kernels = row_kernels(isa);
    const Matrix matrix{static_cast<const char*>(weight), dtype, rows, cols};
    if (rows == 0 || cols == 0) return -1;
    if (group == 0) return LayerSelection(matrix, norm, threads, kernels).run(prune, keep);
    const int parts = row_parts(rows, cols, threads);
    std::vector<int32_t> keys(static_cast<size_t>(parts * cols));
    return for_rows(rows, cols, parts, [&](int part, int64_t row) {
        return kernels.mask(matrix.row(row), dtype, cols, norm, group, prune, keys.data() + part * cols,
                            keep + row * cols);
    });
}

int64_t wanda_pack24(const void* weight, DType dtype, int64_t rows, int64_t cols, const float* norm, void* values,
                     uint8_t* meta, int threads, Isa isa) {
    const RowKernels& kernels = row_kernels(isa);
    const Matrix matrix{static_cast<const char*>(weight), dtype, rows, cols};
    return for_rows(rows, cols, row_parts(rows, cols, threads), [&](int, int64_t row) {
        return kernels.wanda_pack(matrix.row(row), dtype, cols, norm,
                                  static_cast<char*>(values) + row * cols / 2 * item_size(dtype),
                                  meta + row * ((cols + 7) / 8));
    });
}

}  // namespace vlprune

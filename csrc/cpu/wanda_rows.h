// Rows of a matrix split over threads, where each row may report the first entry that it refuses.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops.h"
#include "parallel.h"

namespace vlprune {

inline int64_t item_size(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Threads for a pass over rows x cols entries: enough that each has work worth the start.
inline int row_parts(int64_t rows, int64_t cols, int threads) {
    const int64_t worthwhile = 1 + rows * cols / 32768;
    return static_cast<int>(std::max<int64_t>(1, std::min({int64_t{threads}, rows, worthwhile})));
}

// Calls row(part, index), which returns -1 or the position of the entry refused in that row, for every row,
// in contiguous shares. Returns -1 or index * pitch + position of the first refusal.
template <class Row>
int64_t for_rows(int64_t rows, int64_t pitch, int parts, const Row& row) {
    std::vector<int64_t> refused(static_cast<size_t>(parts), -1);
    parallel_parts(parts, [&](int part, int count) {
        for (int64_t index = rows * part / count; index < rows * (part + 1) / count; ++index) {
            const int64_t position = row(part, index);
            if (position >= 0) {
                refused[static_cast<size_t>(part)] = index * pitch + position;
                return;
            }
        }
    });
    for (const int64_t position : refused)
        if (position >= 0) return position;
    return -1;
}

}  // namespace vlprune

// A block of rows of column_sumsq: four rows a pass, so that the accumulators are written a quarter as often.

template <class T>
void sumsq(const T* x, int64_t rows, int64_t cols, int64_t ld, const float* weight, float* acc) {
    for (int64_t j = 0; j < cols; ++j) acc[j] = 0.0f;
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        const T* const x0 = x + row * ld;
        const T* const x1 = x0 + ld;
        const T* const x2 = x1 + ld;
        const T* const x3 = x2 + ld;
        float w[4] = {1.0f, 1.0f, 1.0f, 1.0f};
        if (weight != nullptr) std::memcpy(w, weight + row, sizeof w);
        for (int64_t j = 0; j < cols; ++j) {
            const float a = to_float(x0[j]), b = to_float(x1[j]), c = to_float(x2[j]), d = to_float(x3[j]);
            acc[j] += (w[0] * (a * a) + w[1] * (b * b)) + (w[2] * (c * c) + w[3] * (d * d));
        }
    }
    for (; row < rows; ++row) {
        const T* const from = x + row * ld;
        const float w = weight == nullptr ? 1.0f : weight[row];
        for (int64_t j = 0; j < cols; ++j) {
            const float a = to_float(from[j]);
            acc[j] += w * (a * a);
        }
    }
}

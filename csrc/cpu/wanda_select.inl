// Scores as ordered integers, and the choice of the lowest of them.

inline bool finite(float score) { return (to_bits(score) & 0x7F800000u) != 0x7F800000u; }

// + 0.0f turns -0.0 into 0.0, so that the two are one key.
template <class T>
inline float score_of(T weight, float norm) {
    return from_bits(to_bits(to_float(weight)) & 0x7FFFFFFFu) * norm + 0.0f;
}

// Signed integers in the order of the floats: the magnitude of the negative ones is flipped.
inline int32_t key_of(float score) {
    const uint32_t bits = to_bits(score);
    return static_cast<int32_t>(bits ^ ((0u - (bits >> 31)) & 0x7FFFFFFFu));
}

template <class T>
int64_t first_not_finite(const T* weight, int64_t cols, const float* norm) {
    for (int64_t j = 0; j < cols; ++j)
        if (!finite(score_of(weight[j], norm[j]))) return j;
    return -1;
}

template <class T>
int64_t score_keys(const T* weight, int64_t cols, const float* norm, int32_t* keys) {
    uint32_t bad = 0;
    for (int64_t j = 0; j < cols; ++j) {
        const float score = score_of(weight[j], norm[j]);
        bad |= finite(score) ? 0u : 1u;
        keys[j] = key_of(score);
    }
    return bad ? first_not_finite(weight, cols, norm) : -1;
}

inline int64_t count_up_to(const int32_t* keys, int64_t count, int32_t limit) {
    int32_t found = 0;
    for (int64_t j = 0; j < count; ++j) found += keys[j] <= limit;
    return found;
}

int64_t keep_above(const int32_t* keys, int64_t cols, int32_t threshold, int64_t ties, bool* keep) {
    for (int64_t j = 0; j < cols; ++j) keep[j] = keys[j] >= threshold;
    for (int64_t j = 0; j < cols && ties > 0; ++j)
        if (keys[j] == threshold) {
            keep[j] = false;
            --ties;
        }
    return ties;
}

// Bisection on the key: passes of one comparison an entry over a row in cache. It ends as soon as a limit
// separates exactly `prune` entries, after about log2(count) passes unless there are ties.
void keep_highest(const int32_t* keys, int64_t count, int64_t prune, bool* keep) {
    if (prune == 0 || prune == count) {
        std::memset(keep, prune == 0, static_cast<size_t>(count));
        return;
    }
    int32_t least = keys[0], most = keys[0];
    for (int64_t j = 1; j < count; ++j) {
        least = keys[j] < least ? keys[j] : least;
        most = keys[j] > most ? keys[j] : most;
    }
    int64_t low = int64_t{least} - 1, high = most, below = 0;  // below = count_up_to(low) < prune
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const int64_t found = count_up_to(keys, count, static_cast<int32_t>(middle));
        if (found == prune) {
            for (int64_t j = 0; j < count; ++j) keep[j] = keys[j] > static_cast<int32_t>(middle);
            return;
        }
        if (found < prune) {
            low = middle;
            below = found;
        } else {
            high = middle;
        }
    }
    keep_above(keys, count, static_cast<int32_t>(high), prune - below, keep);
}

// Small groups: an entry stays if at least `prune` others go before it.
template <int M>
inline void keep_ranked(const int32_t* keys, int64_t prune, bool* keep) {
    int32_t rank[M] = {};
    for (int j = 0; j < M; ++j)
        for (int i = 0; i < M; ++i) rank[i] += (keys[j] < keys[i]) | ((keys[j] == keys[i]) & (j < i));
    for (int i = 0; i < M; ++i) keep[i] = rank[i] >= prune;
}

template <int M>
void keep_ranked_groups(const int32_t* keys, int64_t cols, int64_t prune, bool* keep) {
    for (int64_t j = 0; j < cols; j += M) keep_ranked<M>(keys + j, prune, keep + j);
}

void keep_groups(const int32_t* keys, int64_t cols, int64_t group, int64_t prune, bool* keep) {
    if (group == 4) return keep_ranked_groups<4>(keys, cols, prune, keep);
    if (group == 8) return keep_ranked_groups<8>(keys, cols, prune, keep);
    if (group == 16) return keep_ranked_groups<16>(keys, cols, prune, keep);
    for (int64_t j = 0; j < cols; j += group) keep_highest(keys + j, group, prune, keep + j);
}

// One row of pack24, wanda_pack24 and unpack24.

// Calls bits8(group) for pairs of groups (two nibbles of kept non-zeros) and stores what they say.
template <class T, class Bits4>
inline void pack_tail(const T* weight, int64_t group, int64_t groups, const Bits4& bits4, T* values,
                      uint8_t* meta) {
    for (; group < groups; ++group) {
        const uint32_t bits = bits4(group);
        store2(weight + 4 * group, bits, values + 2 * group);
        if (group % 2 == 0)
            meta[group / 2] = nibble_of(bits);
        else
            meta[group / 2] = static_cast<uint8_t>(meta[group / 2] | nibble_of(bits) << 4);
    }
}

template <class T>
int64_t wanda_pack(const T* weight, int64_t cols, const float* norm, T* values, uint8_t* meta) {
    const int64_t groups = cols / 4;
    int64_t group = 0;
#if defined(__AVX2__)
    __m256 bad = _mm256_setzero_ps();
    for (; group + 2 <= groups; group += 2) {
        const __m256 w = load8(weight + 4 * group);
        const __m256 scores = scores8(w, norm + 4 * group);
        bad = _mm256_or_ps(bad, not_finite8(scores));
        const uint32_t bits = bits8(kept_lanes8(scores, _mm256_set1_epi32(-1))) & nonzero8(w);
        store4(weight + 4 * group, bits, values + 2 * group);
        meta[group / 2] = static_cast<uint8_t>(nibble_of(bits & 15) | nibble_of(bits >> 4) << 4);
    }
    bool finite_scores = _mm256_movemask_ps(bad) == 0;
#else
    bool finite_scores = true;
#endif
    for (int64_t j = 4 * group; j < cols; ++j) finite_scores &= finite(score_of(weight[j], norm[j]));
    if (!finite_scores) return first_not_finite(weight, cols, norm);
    const auto bits4 = [&](int64_t g) {
        return kept4(weight + 4 * g, norm + 4 * g, 2) & nonzero4(weight + 4 * g);
    };
    pack_tail(weight, group, groups, bits4, values, meta);
    return -1;
}

template <class T>
int64_t pack(const T* weight, int64_t cols, T* values, uint8_t* meta) {
    const int64_t groups = cols / 4;
    int64_t group = 0;
    bool bad = false;
#if defined(__AVX2__)
    for (; group + 2 <= groups; group += 2) {
        const uint32_t bits = nonzero8(load8(weight + 4 * group));
        bad |= crowded(bits & 15) | crowded(bits >> 4);
        store4(weight + 4 * group, bits, values + 2 * group);
        meta[group / 2] = static_cast<uint8_t>(nibble_of(bits & 15) | nibble_of(bits >> 4) << 4);
    }
#endif
    const auto bits4 = [&](int64_t g) {
        const uint32_t bits = nonzero4(weight + 4 * g);
        bad |= crowded(bits);
        return bits;
    };
    pack_tail(weight, group, groups, bits4, values, meta);
    if (!bad) return -1;
    for (group = 0; !crowded(nonzero4(weight + 4 * group)); ++group) {
    }
    return group;
}

template <class T>
void unpack(const T* values, const uint8_t* meta, int64_t cols, T* weight) {
    for (int64_t group = 0; group < cols / 4; ++group) {
        const uint32_t nibble = static_cast<uint32_t>(meta[group / 2] >> (group % 2 * 4));
        T* const to = weight + 4 * group;
        to[0] = to[1] = to[2] = to[3] = T{};
        to[nibble & 3] = values[2 * group];
        to[nibble >> 2 & 3] = values[2 * group + 1];
    }
}

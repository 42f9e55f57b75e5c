// n:m masks of groups of 4, 8 or 16 with AVX2. Eight groups are taken together, each on a lane of its own: register i
// holds entry i of each, every pair of registers is compared once, and an entry stays if at least `prune` others go
// before it. Scores without a sign are compared by their bits, as integers.

#if defined(__AVX2__)

inline __m256i score_bits8(__m256 weight, const float* norm) { return _mm256_castps_si256(scores8(weight, norm)); }

// 4 x 4 in each half.
inline void transpose4(const __m256i* from, __m256i* to) {
    const __m256i a = _mm256_unpacklo_epi32(from[0], from[1]), b = _mm256_unpacklo_epi32(from[2], from[3]);
    const __m256i c = _mm256_unpackhi_epi32(from[0], from[1]), d = _mm256_unpackhi_epi32(from[2], from[3]);
    to[0] = _mm256_unpacklo_epi64(a, b);
    to[1] = _mm256_unpackhi_epi64(a, b);
    to[2] = _mm256_unpacklo_epi64(c, d);
    to[3] = _mm256_unpackhi_epi64(c, d);
}

// The bits of eight groups' scores (M registers, in the order of memory), entry by entry. Groups of four come out in
// the order 0 2 4 6 1 3 5 7.
template <int M>
inline void entries_of(const __m256i* bits, __m256i* entry) {
    if constexpr (M == 4) {
        transpose4(bits, entry);
    } else {
        constexpr int halves = M / 8;  // registers a group
        for (int h = 0; h < halves; ++h) {
            __m256i rows[8], low[4], high[4];
            for (int g = 0; g < 8; ++g) rows[g] = bits[g * halves + h];
            transpose4(rows, low);
            transpose4(rows + 4, high);
            for (int i = 0; i < 4; ++i) {
                entry[8 * h + i] = _mm256_permute2x128_si256(low[i], high[i], 0x20);
                entry[8 * h + 4 + i] = _mm256_permute2x128_si256(low[i], high[i], 0x31);
            }
        }
    }
}

// Of four entries the lanes that stay, as bytes 0 or 1 of the lanes.
inline __m256i bytes_of(const __m256i* kept) {
    const __m256i even = _mm256_blend_epi16(kept[0], kept[2], 0xAA), odd = _mm256_blend_epi16(kept[1], kept[3], 0xAA);
    return _mm256_or_si256(_mm256_and_si256(even, _mm256_set1_epi32(0x00010001)),
                           _mm256_and_si256(odd, _mm256_set1_epi32(0x01000100)));
}

inline void store32(bool* to, __m256i bytes) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes); }

template <int M>
inline void store_kept(const __m256i* kept, bool* keep) {
    __m256i bytes[M / 4];
    for (int i = 0; i < M / 4; ++i) bytes[i] = bytes_of(kept + 4 * i);
    if constexpr (M == 4) {
        store32(keep, _mm256_permutevar8x32_epi32(bytes[0], _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    } else if constexpr (M == 8) {
        const __m256i low = _mm256_unpacklo_epi32(bytes[0], bytes[1]), high = _mm256_unpackhi_epi32(bytes[0], bytes[1]);
        store32(keep, _mm256_permute2x128_si256(low, high, 0x20));
        store32(keep + 32, _mm256_permute2x128_si256(low, high, 0x31));
    } else {
        __m256i groups[4];
        transpose4(bytes, groups);
        for (int i = 0; i < 2; ++i) {
            store32(keep + 32 * i, _mm256_permute2x128_si256(groups[2 * i], groups[2 * i + 1], 0x20));
            store32(keep + 64 + 32 * i, _mm256_permute2x128_si256(groups[2 * i], groups[2 * i + 1], 0x31));
        }
    }
}

// The masks of as many groups as come in eights; returns how many columns those are, or 0 if a score is not finite
// or has a sign.
template <int M, class T>
int64_t keep_groups8(const T* weight, int64_t cols, const float* norm, int64_t prune, bool* keep) {
    __m256i largest = _mm256_setzero_si256();
    int64_t j = 0;
    for (; j + 8 * M <= cols; j += 8 * M) {
        __m256i bits[M], entry[M], ahead[M];
        for (int line = 0; line < 8 * M; line += 64) __builtin_prefetch(keep + j + 1024 + line, 1, 3);
        for (int i = 0; i < M; ++i) {
            bits[i] = score_bits8(load8(weight + j + 8 * i), norm + j + 8 * i);
            largest = _mm256_max_epu32(largest, bits[i]);
        }
        entries_of<M>(bits, entry);
        // How many go before entry i, less prune - 1; at first all earlier ones do. -1 stands for true.
        for (int i = 0; i < M; ++i) ahead[i] = _mm256_set1_epi32(static_cast<int>(i - prune + 1));
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
            for (int k = i + 1; k < M; ++k) {
                const __m256i later_first = _mm256_cmpgt_epi32(entry[i], entry[k]);
                ahead[i] = _mm256_sub_epi32(ahead[i], later_first);
                ahead[k] = _mm256_add_epi32(ahead[k], later_first);
            }
        }
        for (int i = 0; i < M; ++i) ahead[i] = _mm256_cmpgt_epi32(ahead[i], _mm256_setzero_si256());
        store_kept<M>(ahead, keep + j);
    }
    const __m256i infinity = _mm256_set1_epi32(0x7F800000);
    const __m256i bad = _mm256_cmpeq_epi32(_mm256_max_epu32(largest, infinity), largest);
    return _mm256_movemask_epi8(bad) == 0 ? j : 0;
}

template <class T>
int64_t keep_groups8(const T* weight, int64_t cols, const float* norm, int64_t group, int64_t prune, bool* keep) {
    switch (group) {
        case 4:
            return keep_groups8<4>(weight, cols, norm, prune, keep);
        case 8:
            return keep_groups8<8>(weight, cols, norm, prune, keep);
        case 16:
            return keep_groups8<16>(weight, cols, norm, prune, keep);
        default:
            return 0;
    }
}

#endif

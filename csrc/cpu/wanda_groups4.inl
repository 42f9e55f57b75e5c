// Groups of four: which entries stay, as bits of an integer, eight weights (two groups) at a time.

// Which of a group's entries are stored for each set of kept non-zeros: those, filled up with the first others.
struct Stored {
    uint8_t first, second;
};
constexpr Stored kStored[16] = {{0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 2}, {0, 2}, {1, 2}, {0, 1},
                                {0, 3}, {0, 3}, {1, 3}, {0, 1}, {2, 3}, {0, 2}, {1, 2}, {0, 1}};

constexpr uint8_t nibble_of(uint32_t bits) {
    return static_cast<uint8_t>(kStored[bits].first | kStored[bits].second << 2);
}

inline bool crowded(uint32_t bits) {  // three or four of four
    return bits == 7 || bits == 11 || bits >= 13;
}

template <class T>
inline uint32_t nonzero4(const T* weight) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) bits |= uint32_t{to_float(weight[i]) != 0.0f} << i;
    return bits;
}

template <class T>
inline uint32_t kept4(const T* weight, const float* norm, int64_t prune) {
    int32_t keys[4];
    bool keep[4];
    for (int i = 0; i < 4; ++i) keys[i] = key_of(score_of(weight[i], norm[i]));
    keep_ranked<4>(keys, prune, keep);
    return uint32_t{keep[0]} | uint32_t{keep[1]} << 1 | uint32_t{keep[2]} << 2 | uint32_t{keep[3]} << 3;
}

template <class T>
inline void store2(const T* weight, uint32_t bits, T* values) {
    const Stored at = kStored[bits];
    values[0] = bits >> at.first & 1 ? weight[at.first] : T{};
    values[1] = bits >> at.second & 1 ? weight[at.second] : T{};
}

#if defined(__AVX2__)

inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load8(const BF16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline __m256 load8(const F16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __m256 scores8(__m256 weight, const float* norm) {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), weight);
    return _mm256_mul_ps(magnitude, _mm256_loadu_ps(norm));
}

// Lanes (in both halves alike) of the entries whose partner, `Rotation` places on, has the lower index.
template <int Rotation, int LowerPartner>
inline __m256i goes_before(__m256 scores) {
    const __m256 partner = _mm256_permute_ps(scores, Rotation);
    const __m256 less = _mm256_cmp_ps(partner, scores, _CMP_LT_OQ);
    const __m256 less_equal = _mm256_cmp_ps(partner, scores, _CMP_LE_OQ);
    return _mm256_castps_si256(_mm256_blend_ps(less, less_equal, LowerPartner));
}

// All ones in the lanes that stay; each lane is ranked against the three others of its group.
inline __m256i kept_lanes8(__m256 scores, __m256i one_minus_prune) {
    __m256i rank = goes_before<0x39, 0x88>(scores);
    rank = _mm256_add_epi32(rank, goes_before<0x4E, 0xCC>(scores));
    rank = _mm256_add_epi32(rank, goes_before<0x93, 0xEE>(scores));
    return _mm256_cmpgt_epi32(one_minus_prune, rank);  // rank counts downwards from 0
}

inline __m256 not_finite8(__m256 scores) {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), scores);
    return _mm256_cmp_ps(magnitude, _mm256_set1_ps(from_bits(0x7F800000u)), _CMP_NLT_UQ);
}

inline uint32_t bits8(__m256i lanes) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}

inline uint32_t nonzero8(__m256 weight) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(weight, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
}

// Byte shuffles that bring a group's stored entries to its front; 0x80 makes the filling zeros.
struct Shuffles {
    uint64_t wide[16] = {};
    uint32_t narrow[16] = {};
    uint32_t keep[16] = {};
};
constexpr Shuffles make_shuffles() {
    Shuffles s{};
    for (uint32_t bits = 0; bits < 16; ++bits) {
        const uint32_t entry[2] = {kStored[bits].first, kStored[bits].second};
        for (uint32_t k = 0; k < 2; ++k) {
            const bool zero = (bits >> entry[k] & 1) == 0;
            for (uint32_t byte = 0; byte < 4; ++byte)
                s.wide[bits] |= uint64_t{zero ? 0x80 : 4 * entry[k] + byte} << 8 * (4 * k + byte);
            for (uint32_t byte = 0; byte < 2; ++byte)
                s.narrow[bits] |= (zero ? 0x80 : 2 * entry[k] + byte) << 8 * (2 * k + byte);
        }
        for (uint32_t i = 0; i < 4; ++i) s.keep[bits] |= (bits >> i & 1) << 8 * i;
    }
    return s;
}
constexpr Shuffles kShuffles = make_shuffles();

inline void store4(const float* weight, uint32_t bits, float* values) {
    const __m256i shuffle = _mm256_set_epi64x(0, static_cast<int64_t>(kShuffles.wide[bits >> 4]), 0,
                                              static_cast<int64_t>(kShuffles.wide[bits & 15]));
    const __m256i source = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
    const __m256i front = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(source, shuffle), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(values), _mm256_castsi256_si128(front));
}

template <class Half>
inline void store4(const Half* weight, uint32_t bits, Half* values) {
    // The second group's entries lie eight bytes further on; 0x80 + 8 still makes a zero.
    const uint64_t shuffle = kShuffles.narrow[bits & 15] |
                             (uint64_t{kShuffles.narrow[bits >> 4]} + 0x08080808u) << 32;
    const __m128i source = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight));
    const __m128i front = _mm_shuffle_epi8(source, _mm_cvtsi64_si128(static_cast<int64_t>(shuffle)));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(values), front);
}

#endif

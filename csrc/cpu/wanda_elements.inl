// Storage types and their conversion to float, for the variant being compiled.

struct BF16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float to_float(float value) { return value; }
inline float to_float(BF16 value) { return from_bits(uint32_t{value.bits} << 16); }
inline float to_float(F16 value) {
    // Exponent re-biased by a multiplication, which also makes the subnormals right; then inf and NaN.
    const uint32_t magnitude = (value.bits & 0x7FFFu) << 13;
    const uint32_t scaled = to_bits(from_bits(magnitude) * 0x1p112f);
    const uint32_t special = magnitude >= 0x0F800000u ? 0x7F800000u | magnitude : scaled;
    return from_bits(special | (value.bits & 0x8000u) << 16);
}

// Calls f(T*) with the storage type of `dtype` and `data` as its elements.
template <class F>
inline auto with_elements(DType dtype, const void* data, const F& f) {
    if (dtype == DType::bf16) return f(static_cast<const BF16*>(data));
    if (dtype == DType::f16) return f(static_cast<const F16*>(data));
    return f(static_cast<const float*>(data));
}

template <class T>
inline T* storage_like(const T*, void* data) {
    return static_cast<T*>(data);
}

// Sixteen lanes as a plain array: GCC and Clang, any machine, and the same tiles as AVX-512.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace vlprune {
namespace {

struct Vec {
    static constexpr int width = 16;
    static constexpr int panel_vectors = 8;
    static constexpr int panel_padding = 16;
    static constexpr int panel_inputs = 64;
    static constexpr int chunk_units = 32;  // 512 rows: 288 KB of sums
    static constexpr bool reads_ahead = false;
    static constexpr bool prefetches_few = false;
    static constexpr int two_pairs_to = 1;
    static constexpr int panel_from = 25;

    struct reg {
        float v[width];
    };
    struct ireg {
        uint32_t v[width];
    };

    template <class F>
    static reg each(F f) {
        reg r;
        for (int i = 0; i < width; ++i) r.v[i] = f(i);
        return r;
    }
    static float from_bits(uint32_t bits) {
        float f;
        std::memcpy(&f, &bits, 4);
        return f;
    }
    static uint32_t to_bits(float f) {
        uint32_t bits;
        std::memcpy(&bits, &f, 4);
        return bits;
    }

    static reg set1(float f) {
        return each([=](int) { return f; });
    }
    static reg load(const float* p) {
        return each([=](int i) { return p[i]; });
    }
    static reg load(const uint16_t* p) {
        return each([=](int i) { return from_bits(uint32_t(p[i]) << 16); });
    }
    static void store(float* p, reg a) { std::memcpy(p, a.v, sizeof a.v); }
    static void store(uint16_t* p, reg a) {
        for (int i = 0; i < width; ++i) {
            const uint32_t u = to_bits(a.v[i]);
            const bool nan = a.v[i] != a.v[i];
            p[i] = uint16_t(nan ? (u >> 16) | 0x40 : (u + 0x7fff + ((u >> 16) & 1)) >> 16);
        }
    }
    static reg fma(reg a, reg b, reg c) {
        return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
    }
    static reg add(reg a, reg b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    static reg sub(reg a, reg b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    static reg mul(reg a, reg b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    static reg div(reg a, reg b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    // Of two operands of which one is NaN, both give the second, as x86 does.
    static reg min(reg a, reg b) {
        return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    static reg max(reg a, reg b) {
        return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    static reg abs(reg a) {
        return each([&](int i) { return std::fabs(a.v[i]); });
    }
    static reg round(reg a) {
        // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number for |a| < 2^22.
        return each([&](int i) {
            volatile float shifted = a.v[i] + 12582912.0f;
            return shifted - 12582912.0f;
        });
    }
    static reg exp2_whole(reg a) {
        return each([&](int i) { return from_bits(uint32_t(int32_t(a.v[i]) + 127) << 23); });
    }

    static reg broadcast4(const float* p) {
        return each([=](int i) { return p[i & 3]; });
    }
    static reg pick(reg a, ireg choice) {
        return each([&](int i) { return a.v[(i & ~3) | int(choice.v[i] & 3)]; });
    }
    static reg in_register(reg a) { return a; }
    static void accumulate(reg& sum, const reg& a, const reg& b) { sum = fma(a, b, sum); }
    static void place_loops() {}
    static ireg load_bits(const void* p) {
        ireg r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static ireg broadcast4_bits(const void* p) {
        ireg r;
        for (int i = 0; i < width; i += 4) std::memcpy(r.v + i, p, 16);
        return r;
    }
    static reg from_bits(ireg a) {
        return each([&](int i) { return from_bits(a.v[i]); });
    }
    template <int lane>
    static reg lane4(reg a) {
        return each([&](int i) { return a.v[(i & ~3) | lane]; });
    }
    template <int bits>
    static ireg shift_left(ireg a) {
        for (int i = 0; i < width; ++i) a.v[i] <<= bits;
        return a;
    }
    template <int bits>
    static ireg shift_right(ireg a) {
        for (int i = 0; i < width; ++i) a.v[i] >>= bits;
        return a;
    }
    static reg high_half(ireg a) {
        return each([&](int i) { return from_bits(a.v[i] & 0xffff0000u); });
    }
    static void transpose(reg (&a)[width]) {
        for (int i = 0; i < width; ++i)
            for (int j = 0; j < i; ++j) {
                const float f = a[i].v[j];
                a[i].v[j] = a[j].v[i];
                a[j].v[i] = f;
            }
    }
    static void prefetch(const void*) {}
    template <size_t bytes, size_t near>
    static void prefetch_stream(const void*) {}
    static void prefetch_to_write(const void*) {}
};

}  // namespace
}  // namespace vlprune

// What the schemes of linear24 share: arithmetic, shares of work, bias and output.
#pragma once
#include <cstdint>
#include <cstring>

#include "linear24.h"

namespace vlprune {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// The packed meta of a group: two inputs of four, the lower first, 2 bits each.
inline int meta_nibble(const uint8_t* meta_row, int64_t group) {
    return meta_row[group / 2] >> (group % 2 * 4) & 15;
}

// Two inputs a group, whatever meta says: results of a broken one are unspecified, but nothing is read or written
// beyond the buffers.
inline int low_of(int nibble) { return nibble & 3; }
inline int high_of(int nibble) { return nibble >> 2 == (nibble & 3) ? nibble >> 2 ^ 1 : nibble >> 2; }

// The next work unit for `part`, or -1: first those of its own equal share of [0, total), in order, so that a
// thread meets the same weights from call to call; then what other parts have not yet come to, because
// threads do not run equally fast.
inline int64_t claim(const Linear24& p, int64_t total, int part, int parts) {
    for (int i = 0; i < parts; ++i) {
        const int owner = part + i < parts ? part + i : part + i - parts;
        const int64_t begin = total * owner / parts, end = total * (owner + 1) / parts;
        int64_t* claimed = &p.cursors[owner].claimed;
        if (__atomic_load_n(claimed, __ATOMIC_RELAXED) >= end - begin) continue;
        const int64_t unit = begin + __atomic_fetch_add(claimed, 1, __ATOMIC_RELAXED);
        if (unit < end) return unit;
    }
    return -1;
}

// Fills a register with bias entries, zeros past the end.
template <class V, class Element>
inline void load_bias(const void* bias, int64_t first, int64_t out, float* to) {
    Element entries[V::width] = {};
    if (bias) {
        const auto* source = static_cast<const Element*>(bias) + first;
        std::memcpy(entries, source, sizeof(Element) * static_cast<size_t>(least(V::width, out - first)));
    }
    V::store(to, V::load(entries));
}

// Results of one token for `count` rows of the weight, from `at` in y on, with what is added to them.
template <class V, class Element>
inline void store_outputs(const Linear24& p, int64_t at, int64_t count, typename V::reg value) {
    auto* y = static_cast<Element*>(p.y) + at;
    const auto* residual = static_cast<const Element*>(p.residual);
    if (count == V::width) {
        V::store(y, residual ? V::add(value, V::load(residual + at)) : value);
        return;
    }
    Element line[V::width] = {};
    const auto bytes = sizeof(Element) * static_cast<size_t>(count);
    if (residual) {
        std::memcpy(line, residual + at, bytes);
        value = V::add(value, V::load(line));
    }
    V::store(line, value);
    std::memcpy(y, line, bytes);
}

}  // namespace
}  // namespace vlprune

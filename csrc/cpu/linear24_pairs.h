// The prepared weight for many tokens: rows in pairs, [input block][row tile].
//
// With tokens on the lanes a multiply-add takes its operand from memory, and a core that multiplies twice a cycle
// also loads only twice. So two rows are computed together, and an input that both keep is loaded once: of the 64
// that each keeps of 128, 32 by chance; with partners chosen within a tile, 28 in every pair of a block (random 2:4
// weights). First come the inputs that both keep, then, in turn, those of the one and of the other: the order in which
// a row is summed depends on its partner. By itself, with sums and weights streamed,
// this loop makes 93 GFLOP/s on a core of Zen 3 where that of a row alone makes 86.
//
// Memory: float32 6.1 bytes a kept weight = 0.77 of the dense weight; bfloat16 4.1 bytes = 1.03 of dense.
#pragma once
#include "linear24_common.h"

namespace vlprune {
namespace {

constexpr int octet = 8;  // kept weights whose values stand together, four of each row

// Where the value number k stands in an octet.
constexpr int place_of(int k, const float*) { return k; }
constexpr int place_of(int k, const uint16_t*) { return k % 4 * 2 + k / 4; }

template <class V, class Element>
struct Pairs {
    static constexpr int W = V::width;
    static constexpr int inputs = V::panel_inputs;  // of a block
    static constexpr int kept = inputs / 2;         // of them by a row
    static constexpr int stride = V::width * V::panel_vectors + V::panel_padding;  // floats in a row of the panel
    static constexpr int row_bytes = stride * static_cast<int>(sizeof(float));
    static_assert(inputs * row_bytes <= 65536, "offsets have 16 bits");

    struct Source {
        const Element* values;
        const uint8_t* meta;
        int64_t out, in;
    };

    // Two rows: values a b a b ..., and offsets into the panel: one for every shared input, else as the values. Four
    // offsets are one word, the first lowest: words take fewer loads.
    struct Pair {
        Element values[2 * kept];
        uint64_t offsets[2 * kept / 4];
    };
    struct Partners {
        uint8_t first, second;
    };
    // How many octets a pair shares and has for itself is one number for an input block: a processor that guesses the
    // ends of the two loops wrong loses a tenth.
    struct alignas(64) Tile {
        Pair pairs[W / 2];
        Partners partners[W / 2];
        uint8_t shared, own;
    };
    static_assert(sizeof(Tile) >= sizeof(Tile::pairs) + 3 * sizeof(uint64_t), "three words are read ahead");

    static int64_t bytes(int64_t out, int64_t in) {
        return ceil_div(out, W) * ceil_div(in, inputs) * static_cast<int64_t>(sizeof(Tile));
    }

    // A row of one block: its weights where their inputs are, and a bit for each that it keeps.
    struct Row {
        Element value[inputs];
        uint64_t keeps[inputs / 64];
    };

    static void read_keeps(const uint8_t* meta, int groups, Row& row) {
        std::memset(row.keeps, 0, sizeof row.keeps);
        for (int g = 0; g < groups; ++g) {
            const int nibble = meta_nibble(meta, g);
            row.keeps[g / 16] |= (uint64_t(1) << low_of(nibble) | uint64_t(1) << high_of(nibble)) << g % 16 * 4;
        }
    }

    static void read_values(const Element* values, const uint8_t* meta, int groups, Row& row) {
        for (int g = 0; g < groups; ++g) {
            const int nibble = meta_nibble(meta, g);
            row.value[4 * g + low_of(nibble)] = values[2 * g];
            row.value[4 * g + high_of(nibble)] = values[2 * g + 1];
        }
    }

    // Rows past the last one are that one with zeros: computed and never stored.
    static void read_keeps(const Source& from, int64_t first, int64_t input, int groups, Row (&rows)[W]) {
        for (int r = 0; r < W; ++r)
            read_keeps(from.meta + least(first + r, from.out - 1) * ceil_div(from.in, 8) + input / 8, groups, rows[r]);
    }
    static void read_values(const Source& from, int64_t first, int64_t input, int groups, Row (&rows)[W]) {
        for (int64_t r = 0, o = first; r < W; ++r, ++o) {
            std::memset(rows[r].value, 0, sizeof rows[r].value);
            if (o < from.out)
                read_values(from.values + (o * from.in + input) / 2, from.meta + o * ceil_div(from.in, 8) + input / 8,
                            groups, rows[r]);
        }
    }

    static int shared_by(const Row& a, const Row& b) {
        int count = 0;
        for (int i = 0; i < inputs / 64; ++i) count += __builtin_popcountll(a.keeps[i] & b.keeps[i]);
        return count;
    }

    // Exchanges partners until the pair that shares least cannot gain by it; returns what that one shares.
    static int choose_partners(const Row (&rows)[W], Partners (&partners)[W / 2]) {
        int shared[W][W], count[W / 2];
        for (int a = 0; a < W; ++a)
            for (int b = 0; b < a; ++b) shared[a][b] = shared[b][a] = shared_by(rows[a], rows[b]);
        for (int p = 0; p < W / 2; ++p) {
            partners[p] = {static_cast<uint8_t>(2 * p), static_cast<uint8_t>(2 * p + 1)};
            count[p] = shared[2 * p][2 * p + 1];
        }
        for (;;) {
            int least_pair = 0;
            for (int p = 1; p < W / 2; ++p)
                if (count[p] < count[least_pair]) least_pair = p;
            Partners& low = partners[least_pair];
            bool gained = false;
            for (int p = 0; p < W / 2 && !gained; ++p) {
                if (p == least_pair) continue;
                Partners& other = partners[p];
                for (int turn = 0; turn < 2 && !gained; ++turn) {
                    const uint8_t mine = low.second, its = turn ? other.first : other.second;
                    const uint8_t stays = turn ? other.second : other.first;
                    const int one = shared[low.first][its], two = shared[stays][mine];
                    if (one <= count[least_pair] || two <= count[least_pair]) continue;
                    low.second = its, other = {stays, mine};
                    count[least_pair] = one, count[p] = two, gained = true;
                }
            }
            if (!gained) return count[least_pair];
        }
    }

    // The lowest input left, which is taken away; `none` where there is none.
    static int take(uint64_t (&left)[inputs / 64], int none) {
        for (int word = 0; word < inputs / 64; ++word) {
            if (left[word] == 0) continue;
            const int input = 64 * word + __builtin_ctzll(left[word]);
            left[word] &= left[word] - 1;
            return input;
        }
        return none;
    }

    static void write(const Row& a, const Row& b, int groups, Tile& tile, Pair& to) {
        int values = 0, offsets = 0;
        const auto put = [&](const Row& row, int input) {
            // padding is behind the last input, where there is no weight
            to.values[values / octet * octet + place_of(values % octet, to.values)] =
                input < 4 * groups ? row.value[input] : Element{};
            ++values;
        };
        const auto point = [&](int input) {
            to.offsets[offsets / 4] |= uint64_t(input * row_bytes) << offsets % 4 * 16;
            ++offsets;
        };
        uint64_t both[inputs / 64], left_a[inputs / 64], left_b[inputs / 64];
        for (int word = 0; word < inputs / 64; ++word) {
            left_a[word] = a.keeps[word], left_b[word] = b.keeps[word];
            both[word] = left_a[word] & left_b[word];
        }
        for (int k = 0; k < 4 * tile.shared; ++k) {
            const int input = take(both, 0);
            left_a[input / 64] ^= uint64_t(1) << input % 64, left_b[input / 64] ^= uint64_t(1) << input % 64;
            put(a, input), put(b, input), point(input);
        }
        // Padding points behind the last input, where the panel holds zeros: 0 times a token's infinity would be NaN.
        for (int k = 0; k < 4 * tile.own; ++k) {
            const int own_a = take(left_a, 4 * groups), own_b = take(left_b, 4 * groups);
            put(a, own_a), put(b, own_b), point(own_a), point(own_b);
        }
    }

    static void fill(const void* values, const uint8_t* meta, int64_t out, int64_t in, void* prepared) {
        const Source from{static_cast<const Element*>(values), meta, out, in};
        auto* tiles = static_cast<Tile*>(prepared);
        const int64_t count = ceil_div(out, W);
        Row rows[W];
        for (int64_t input = 0; input < in; input += inputs, tiles += count) {
            const int groups = static_cast<int>(least(inputs, in - input) / 4);
            int shared = kept;
            for (int64_t t = 0; t < count; ++t) {
                std::memset(static_cast<void*>(tiles + t), 0, sizeof(Tile));
                read_keeps(from, t * W, input, groups, rows);
                const int found = choose_partners(rows, tiles[t].partners);
                shared = found < shared ? found : shared;
            }
            for (int64_t t = 0; t < count; ++t) {
                read_keeps(from, t * W, input, groups, rows);
                read_values(from, t * W, input, groups, rows);
                tiles[t].shared = static_cast<uint8_t>(shared / 4);
                tiles[t].own = static_cast<uint8_t>(ceil_div(2 * groups - 4 * tiles[t].shared, 4));
                for (int p = 0; p < W / 2; ++p) {
                    const Partners pair = tiles[t].partners[p];
                    write(rows[pair.first], rows[pair.second], groups, tiles[t], tiles[t].pairs[p]);
                }
            }
        }
    }
};

}  // namespace
}  // namespace vlprune

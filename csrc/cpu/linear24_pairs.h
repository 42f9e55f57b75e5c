// The prepared weight for many tokens: rows in pairs, [input block][row tile].
//
// With tokens on the lanes a multiply-add takes its operand from memory, and a core that multiplies twice a cycle
// also loads only twice. So two rows are computed together, and an input that both keep is loaded once: of the 64
// that each keeps of 128, 32 are shared by chance and more by choice of partner within a tile. First come the
// inputs that both keep, then, in turn, those of the one and of the other. By itself, with sums and weights streamed,
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

    static int64_t bytes(int64_t out, int64_t in) {
        return ceil_div(out, W) * ceil_div(in, inputs) * static_cast<int64_t>(sizeof(Tile));
    }

    // A row's weights of one block.
    struct Row {
        Element value[inputs];
        uint64_t keeps[inputs / 64];

        bool has(int input) const { return keeps[input / 64] >> input % 64 & 1; }
        void put(int input, Element v) {
            value[input] = v;
            keeps[input / 64] |= uint64_t(1) << input % 64;
        }
    };

    // Rows past the last one keep the first two inputs of every group, as zeros: computed and never stored.
    static void read(const Element* values, const uint8_t* meta, int groups, Row& row) {
        std::memset(static_cast<void*>(&row), 0, sizeof row);
        for (int g = 0; g < groups; ++g) {
            const int nibble = meta ? meta_nibble(meta, g) : 4;
            const int low = nibble & 3;
            // a broken meta may name an input twice: two are kept whatever it says
            const int high = nibble >> 2 == low ? low ^ 1 : nibble >> 2;
            row.put(4 * g + low, values ? values[2 * g] : Element{});
            row.put(4 * g + high, values ? values[2 * g + 1] : Element{});
        }
    }

    static void read_tile(const Element* values, const uint8_t* meta, int64_t out, int64_t in, int64_t first,
                          int64_t input, int groups, Row (&rows)[W]) {
        for (int64_t r = 0, o = first; r < W; ++r, ++o)
            read(o < out ? values + (o * in + input) / 2 : nullptr,
                 o < out ? meta + o * ceil_div(in, 8) + input / 8 : nullptr, groups, rows[r]);
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

    static void write(const Row& a, const Row& b, int groups, Tile& tile, Pair& to) {
        int values = 0, offsets = 0, shared = 0, own_a[kept + 4], own_b[kept + 4], count_a = 0, count_b = 0;
        const auto value = [&](Element v) {
            to.values[values / octet * octet + place_of(values % octet, to.values)] = v;
            ++values;
        };
        const auto offset = [&](int input) {
            to.offsets[offsets / 4] |= uint64_t(input * row_bytes) << offsets % 4 * 16;
            ++offsets;
        };
        for (int i = 0; i < 4 * groups; ++i) {
            if (a.has(i) && b.has(i) && shared < 4 * tile.shared) {
                value(a.value[i]), value(b.value[i]), offset(i), ++shared;
            } else {
                if (a.has(i)) own_a[count_a++] = i;
                if (b.has(i)) own_b[count_b++] = i;
            }
        }
        // Padding points behind the last input, where the panel holds zeros: 0 times a token's infinity would be NaN.
        while (count_a % 4) own_a[count_a++] = own_b[count_b++] = 4 * groups;
        for (int k = 0; k < 2 * count_a; ++k) {
            const int input = k % 2 ? own_b[k / 2] : own_a[k / 2];
            value(input == 4 * groups ? Element{} : k % 2 ? b.value[input] : a.value[input]);
            offset(input);
        }
        tile.own = static_cast<uint8_t>(count_a / 4);
    }

    static void fill(const void* packed_values, const uint8_t* meta, int64_t out, int64_t in, void* prepared) {
        const auto* values = static_cast<const Element*>(packed_values);
        auto* tiles = static_cast<Tile*>(prepared);
        const int64_t count = ceil_div(out, W);
        Row rows[W];
        for (int64_t input = 0; input < in; input += inputs, tiles += count) {
            const int groups = static_cast<int>(least(inputs, in - input) / 4);
            int shared = kept;
            for (int64_t t = 0; t < count; ++t) {
                std::memset(static_cast<void*>(tiles + t), 0, sizeof(Tile));
                read_tile(values, meta, out, in, t * W, input, groups, rows);
                const int found = choose_partners(rows, tiles[t].partners);
                shared = found < shared ? found : shared;
            }
            for (int64_t t = 0; t < count; ++t) {
                read_tile(values, meta, out, in, t * W, input, groups, rows);
                tiles[t].shared = static_cast<uint8_t>(shared / 4);
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

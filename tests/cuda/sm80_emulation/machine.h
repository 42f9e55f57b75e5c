// The instructions that the kernel uses, as the PTX ISA describes them, for a thread of an emulated block.
//
// Written from "Matrix fragments for mma.m16n8k16 / sparse mma.m16n8k32 with .f16 and .bf16 types", "ldmatrix",
// "movmatrix" and "cp.async"; it shares nothing with the kernel but the 16-bit number formats.
#pragma once
#include <algorithm>
#include <cstring>
#include <deque>

#include "block.h"
#include "cuda/linear24_sm80_types.h"

namespace emulation {

using vlprune::sm80::BFloat16;
using vlprune::sm80::is_bfloat16;

enum Instruction : int { ldmatrix = 1, ldmatrix_trans, lds, sts, mma_0, mma_1, movmatrix };

struct Range {
    const void* from;
    int64_t bytes;
};

// Round to nearest, ties to even; too large becomes infinite.
inline uint32_t bfloat16_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t float16_bits(float value) {
    const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::fabs(static_cast<double>(value));
    if (value != value) return 0x7fff;
    if (magnitude >= 65520.0) return sign | 0x7c00;
    const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
    // In units of the last place; nearbyint rounds ties to even, and a carry runs into the exponent by itself.
    const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    return sign | (units + static_cast<uint32_t>(exponent + 14) * 1024);
}

class Machine {
public:
    Machine(Block& block, int thread, Landing landing, const std::vector<Range>& reads,
            const std::vector<Range>& writes)
        : block_(block), thread_(thread), landing_(landing), reads_(reads), writes_(writes) {}

    int thread() const { return thread_; }
    void sync() {
        block_.meet_block(thread_, [] {});
    }

    // -- copies in the background -----------------------------------------------------------------
    void copy(int to, const void* from) {
        check(reads_, from, 16);
        check_shared(to, 16);
        const Copy copy{to, from};
        const bool now = landing_ == Landing::early || (landing_ == Landing::random && block_.random() % 2);
        if (now)
            land(copy);
        else
            open_.push_back(copy);
    }
    void copy_if(bool wanted, int to, const void* from) {
        if (wanted) copy(to, from);
    }
    void close_copies() {
        groups_.push_back(open_);
        open_.clear();
    }
    template <int StillOpen>
    void wait_copies() {
        while (groups_.size() > StillOpen) {
            for (const Copy& copy : groups_.front()) land(copy);
            groups_.pop_front();
        }
    }

    // -- shared memory -----------------------------------------------------------------------------
    void load_matrices(uint32_t (&to)[4], int from) { matrices<false>(to, from); }
    void load_matrices_transposed(uint32_t (&to)[4], int from) { matrices<true>(to, from); }
    uint32_t load_word(int from) {
        WordAccess access{from, 0};
        block_.meet_warp(thread_, lds, &access, [&](void* const* lanes) {
            words(lanes, [&](WordAccess& a) { std::memcpy(&a.word, &block_.shared[size_t(a.at)], 4); });
        });
        return access.word;
    }
    void store_word(int to, uint32_t word) {
        WordAccess access{to, word};
        block_.meet_warp(thread_, sts, &access, [&](void* const* lanes) {
            words(lanes, [&](WordAccess& a) { std::memcpy(&block_.shared[size_t(a.at)], &a.word, 4); });
        });
    }
    // Lanes without results of their own do not come here, so this is no meeting; its conflicts are judged by
    // the test of addresses.
    void store_8(uint16_t* to, int from) {
        check(writes_, to, 16);
        check_shared(from, 16);
        std::memcpy(to, &block_.shared[size_t(from)], 16);
    }

    // -- registers ----------------------------------------------------------------------------------
    template <class T, int Selector>
    void mma(float (&sums)[4], const uint32_t (&values)[4], const uint32_t (&x)[4], uint32_t meta) {
        MmaOperands operands{sums, values, x, meta};
        block_.meet_warp(thread_, mma_0 + Selector, &operands,
                         [&](void* const* lanes) { multiply<T, Selector>(lanes); });
    }
    uint32_t transpose(uint32_t pair) {
        uint32_t pairs[2] = {pair, 0};
        block_.meet_warp(thread_, movmatrix, pairs, [](void* const* lanes) {
            const auto source = [&](int lane) { return static_cast<uint32_t*>(lanes[lane])[0]; };
            const auto element = [&](int row, int column) {
                return source(4 * row + column / 2) >> column % 2 * 16 & 0xffff;
            };
            for (int lane = 0; lane < 32; ++lane) {
                const int row = lane / 4, column = lane % 4 * 2;
                static_cast<uint32_t*>(lanes[lane])[1] = element(column, row) | element(column + 1, row) << 16;
            }
        });
        return pairs[1];
    }
    template <class T>
    uint32_t rounded(float low, float high) {
        if (is_bfloat16<T>) return bfloat16_bits(low) | bfloat16_bits(high) << 16;
        return float16_bits(low) | float16_bits(high) << 16;
    }

    // -- global memory ------------------------------------------------------------------------------
    uint32_t load_16(const uint16_t* from) {
        check(reads_, from, 2);
        return *from;
    }
    void store_partial(float* to, const float (&sums)[4]) {
        check(writes_, to, 16);
        std::memcpy(to, sums, 16);
    }
    void load_partial(const float* from, float (&sums)[4]) {
        check(writes_, from, 16);
        std::memcpy(sums, from, 16);
    }
    bool last_to_arrive(uint32_t* arrived, int parts) {
        check(writes_, arrived, 4);
        block_.meet_block(thread_, [&] {
            block_.flag = ++*arrived == static_cast<uint32_t>(parts);
            if (block_.flag) *arrived = 0;
        });
        return block_.flag;
    }

private:
    struct Copy {
        int to;
        const void* from;
    };
    struct WordAccess {
        int at;
        uint32_t word;
    };
    struct MatrixAccess {
        int from;
        uint32_t* to;
    };
    struct MmaOperands {
        float* sums;
        const uint32_t* values;
        const uint32_t* x;
        uint32_t meta;
    };

    void land(const Copy& copy) { std::memcpy(&block_.shared[size_t(copy.to)], copy.from, 16); }

    void check(const std::vector<Range>& ranges, const void* address, int64_t bytes) {
        const auto a = reinterpret_cast<uintptr_t>(address);
        block_.faults.misaligned += a % static_cast<uintptr_t>(bytes) != 0;
        block_.faults.outside += std::none_of(ranges.begin(), ranges.end(), [&](const Range& range) {
            const auto from = reinterpret_cast<uintptr_t>(range.from);
            return a >= from && a + static_cast<uintptr_t>(bytes) <= from + static_cast<uintptr_t>(range.bytes);
        });
    }
    void check_shared(int at, int bytes) {
        block_.faults.misaligned += at % bytes != 0;
        block_.faults.outside += at < 0 || at + bytes > static_cast<int>(block_.shared.size());
    }

    // Eight rows of 16 bytes go at once where they lie in different banks.
    template <bool Transposed>
    void matrices(uint32_t (&to)[4], int from) {
        check_shared(from, 16);
        MatrixAccess access{from, to};
        block_.meet_warp(thread_, Transposed ? ldmatrix_trans : ldmatrix, &access, [&](void* const* lanes) {
            for (int matrix = 0; matrix < 4; ++matrix) {
                uint16_t element[8][8];
                int used[8] = {};
                for (int row = 0; row < 8; ++row) {
                    const int at = static_cast<MatrixAccess*>(lanes[8 * matrix + row])->from;
                    std::memcpy(element[row], &block_.shared[size_t(at)], 16);
                    ++used[at / 16 % 8];
                }
                block_.faults.bank_conflicts += *std::max_element(used, used + 8) - 1;
                for (int lane = 0; lane < 32; ++lane) {
                    const int row = lane / 4, column = lane % 4 * 2;
                    const uint32_t low = Transposed ? element[column][row] : element[row][column];
                    const uint32_t high = Transposed ? element[column + 1][row] : element[row][column + 1];
                    static_cast<MatrixAccess*>(lanes[lane])->to[matrix] = low | high << 16;
                }
            }
        });
    }

    template <class Move>
    void words(void* const* lanes, const Move& move) {
        int used[32] = {};
        for (int lane = 0; lane < 32; ++lane) {
            auto& access = *static_cast<WordAccess*>(lanes[lane]);
            check_shared(access.at, 4);
            ++used[access.at / 4 % 32];  // no two lanes of the kernel share a word
            move(access);
        }
        block_.faults.bank_conflicts += *std::max_element(used, used + 32) - 1;
    }

    // sums[16 x 8] += A[16 x 32] x B[32 x 8].
    template <class T, int Selector>
    void multiply(void* const* lanes) {
        const auto operands = [&](int lane) -> MmaOperands& { return *static_cast<MmaOperands*>(lanes[lane]); };
        float a[16][32] = {}, b[32][8];
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane >> 2, in_group = lane % 4;
            for (int i = 0; i < 8; ++i) {
                const uint32_t value = operands(lane).values[i / 2] >> i % 2 * 16 & 0xffff;
                const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
                const int first_column = in_group * 4 + (i < 4 ? 0 : 16);
                const uint32_t word = operands(4 * (row % 8) + 2 * Selector + first_column / 16).meta;
                const uint32_t nibble = word >> (row < 8 ? 0 : 16) >> first_column % 16 & 15;
                block_.faults.indices += (nibble & 3) >= nibble >> 2;
                a[row][first_column + static_cast<int>(nibble >> i % 2 * 2 & 3)] = T::to_float(value);
            }
            for (int i = 0; i < 8; ++i) {
                const uint32_t value = operands(lane).x[i / 2] >> i % 2 * 16 & 0xffff;
                b[in_group * 2 + i % 2 + i / 2 * 8][group] = T::to_float(value);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane >> 2, in_group = lane % 4;
            for (int i = 0; i < 4; ++i) {
                const int row = i < 2 ? group : group + 8, column = in_group * 2 + i % 2;
                double sum = operands(lane).sums[i];
                for (int k = 0; k < 32; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
                operands(lane).sums[i] = static_cast<float>(sum);
            }
        }
    }

    Block& block_;
    int thread_;
    Landing landing_;
    const std::vector<Range>& reads_;
    const std::vector<Range>& writes_;
    std::vector<Copy> open_;
    std::deque<std::vector<Copy>> groups_;
};

}  // namespace emulation

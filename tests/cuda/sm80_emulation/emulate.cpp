// The whole kernel of linear24_sm80 on the host, for ctypes.
#include <algorithm>

#include "cuda/linear24_meta.h"
#include "cuda/linear24_sm80_configs.h"
#include "cuda/linear24_sm80_epilogue.h"
#include "machine.h"

using namespace vlprune;
using namespace vlprune::sm80;
using namespace emulation;

namespace {

struct Launch {
    int64_t config, parts, bfloat16, order, landing, seed, blocks_backwards;
    int64_t tokens, out, in, ldx, ldr, ldy, activation;
    const uint16_t *x, *values;
    const uint8_t* meta;
    const uint16_t *bias, *residual;
    uint16_t* y;
    uint8_t* workspace;
};

template <class Tile>
void emulate(const Launch& l, Faults& faults) {
    const int64_t count = tiles<Tile>(l.tokens, l.out);
    const int parts = static_cast<int>(l.parts);
    const int64_t workspace = workspace_bytes<Tile>(count, parts);
    Problem p{l.x, l.values, l.meta, l.bias, l.residual, l.y, l.ldx, l.ldr, l.ldy,
              static_cast<int>(l.tokens), static_cast<int>(l.out), static_cast<int>(l.in),
              l.activation != 0, gate_of(static_cast<Activation>(l.activation)), parts, nullptr, nullptr};
    if (parts > 1) {
        p.arrived = reinterpret_cast<uint32_t*>(l.workspace);
        p.partials = reinterpret_cast<float*>(l.workspace + counter_bytes);
    }
    const auto rows = [&](const void* from, int64_t stride, int64_t columns) {
        return Range{from, ((l.tokens - 1) * stride + columns) * 2};
    };
    std::vector<Range> reads{rows(l.x, l.ldx, l.in), {l.values, l.out * l.in}};
    reads.push_back({l.meta, sm80_meta_bytes(l.out, l.in)});
    if (l.bias) reads.push_back({l.bias, l.out * 2});
    if (l.residual) reads.push_back(rows(l.residual, l.ldr, l.out));
    std::vector<Range> writes{rows(l.y, l.ldy, l.out)};
    if (parts > 1) writes.push_back({l.workspace, workspace});

    for (int64_t i = 0; i < count * parts; ++i) {
        const int64_t index = l.blocks_backwards ? count * parts - 1 - i : i;
        Block block(Tile::threads, Tile::shared_bytes, static_cast<Order>(l.order),
                    static_cast<unsigned>(l.seed + index), faults);
        block.run([&](int thread) {
            Machine machine(block, thread, static_cast<Landing>(l.landing), reads, writes);
            if (l.bfloat16)
                linear24_block<BFloat16, Tile>(machine, p, static_cast<unsigned>(index));
            else
                linear24_block<Float16, Tile>(machine, p, static_cast<unsigned>(index));
        });
    }
}

// Cycles beyond the least when each eight threads in turn touch 16 bytes at at(thread).
template <class At>
int64_t conflicts(int threads, const At& at) {
    int64_t extra = 0;
    for (int first = 0; first < threads; first += 8) {
        int used[8] = {};
        for (int thread = first; thread < first + 8; ++thread) ++used[at(thread) / 16 % 8];
        extra += *std::max_element(used, used + 8) - 1;
    }
    return extra;
}

}  // namespace

extern "C" {

int config_total() { return config_count; }

void config_info(int config, const char** name, int64_t* sizes) {
    *name = configs[config].name;
    with_tile(configs[config].tile, [&](auto tile) {
        const int64_t all[] = {tile.out,     tile.tokens,       tile.stages,
                               tile.threads, tile.shared_bytes, configs[config].parts};
        std::copy(std::begin(all), std::end(all), sizes);
    });
}

int64_t workspace_needed(int config, int64_t tokens, int64_t out, int64_t in) {
    return with_tile(configs[config].tile, [&](auto tile) {
        const int64_t count = tiles<decltype(tile)>(tokens, out);
        return workspace_bytes<decltype(tile)>(count, possible_parts(configs[config], count, in));
    });
}

int64_t parts_chosen(int config, int64_t tokens, int64_t out, int64_t in, int sms) {
    return with_tile(configs[config].tile, [&](auto tile) -> int64_t {
        const int64_t count = tiles<decltype(tile)>(tokens, out);
        return chosen_parts<decltype(tile)>(configs[config], count, in, sms);
    });
}

void run(const Launch* launch, int64_t* faults_) {
    Faults faults;
    with_tile(configs[launch->config].tile, [&](auto tile) { emulate<decltype(tile)>(*launch, faults); });
    const int64_t all[] = {faults.bank_conflicts, faults.outside, faults.misaligned,
                           faults.indices, faults.different_instructions, faults.stuck};
    std::copy(std::begin(all), std::end(all), faults_);
}

// Of the accesses that are no meeting of a warp: copies to shared memory, and results read back from it.
int64_t copy_conflicts(int config) {
    return with_tile(configs[config].tile, [](auto tile) -> int64_t {
        using Tile = decltype(tile);
        int64_t extra = conflicts(Tile::threads, [](int thread) {
            const auto place = Tile::value_copy(thread);
            return swizzled<4>(place.row, place.column);
        });
        extra += conflicts(Tile::threads, [](int thread) {
            const auto place = Tile::x_copy(thread);
            return Tile::x_at + swizzled<8>(place.row, place.column);
        });
        for (int first = 0; first < Tile::tokens * Tile::result_chunks; first += Tile::threads)
            extra += conflicts(Tile::threads, [&](int thread) {
                const int piece = first + thread;
                return Tile::result(piece / Tile::result_chunks, piece % Tile::result_chunks);
            });
        return extra;
    });
}

int64_t meta_bytes(int64_t out, int64_t in) { return sm80_meta_bytes(out, in); }
void reorder_meta(const uint8_t* meta, int64_t out, int64_t in, uint8_t* to) {
    sm80_reorder_meta(meta, out, in, to);
}

void from_float16(const uint16_t* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = Float16::to_float(from[i]);
}
void to_16(int bfloat16, const float* from, uint16_t* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        to[i] = static_cast<uint16_t>(bfloat16 ? bfloat16_bits(from[i]) : float16_bits(from[i]));
}

}  // extern "C"

// linear24 on sm_80, sm_86, sm_89 and later GPUs: what its configs cannot do, and the way to the one asked for.
#include "cuda/linear24_sm80.h"

#include <cuda_runtime_api.h>

#include "cuda/linear24_sm80_configs.h"

namespace vlprune {

namespace {

using namespace sm80;

static_assert(counter_bytes <= zeroed_workspace);

bool known(int config) { return config >= 0 && config < config_count; }

bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % chunk == 0; }

// Why not on any GPU.
const char* why_nowhere(int config, const Linear24Call& call) {
    constexpr int64_t largest = int64_t{1} << 24;  // 128 rows further is still a 32-bit offset
    if (!known(config)) return "there is no such config";
    if (call.dtype != DType::bf16 && call.dtype != DType::f16) return "dtype has to be bfloat16 or float16";
    if (call.tokens < 1) return "there are no tokens";
    if (call.tokens > INT32_MAX - 256) return "there are more than 2^31 tokens";
    if (call.out < 8 || call.out % 8)
        return "out has to be a multiple of 8: results are stored 16 bytes at a time";
    if (call.in < stage_in || call.in % stage_in)
        return "in has to be a multiple of 64: weights are read 64 inputs at a time";
    if (call.in > largest || call.out > largest || call.ldx > largest)
        return "in, out and the stride of x have to be at most 2^24";
    if (call.out * call.in > UINT32_MAX) return "the weight has to have fewer than 2^32 elements";
    if (call.ldx % 8 || call.ldy % 8 || call.ldr % 8)
        return "strides from token to token have to be multiples of 8";
    const void* const addresses[] = {call.x, call.values, call.meta, call.residual, call.y, call.workspace};
    for (const void* address : addresses)
        if (!aligned(address))
            return "x, values, meta, residual, y and workspace have to start at multiples of 16 bytes";
    const bool too_many = with_tile(configs[config].tile, [&](auto tile) {
        return tiles<decltype(tile)>(call.tokens, call.out) > INT32_MAX;
    });
    return too_many ? "there are more than 2^31 tiles" : nullptr;
}

// 0 where it cannot be asked, as on a machine without a GPU: then nothing is said about it.
int shared_memory_of_device() {
    int device, bytes;
    if (cudaGetDevice(&device) ||
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
        cudaGetLastError();
        return 0;
    }
    return bytes;
}

Problem problem_of(const Linear24Call& call, int parts) {
    Problem p{};
    p.x = static_cast<const uint16_t*>(call.x);
    p.values = static_cast<const uint16_t*>(call.values);
    p.meta = static_cast<const uint8_t*>(call.meta);
    p.bias = static_cast<const uint16_t*>(call.bias);
    p.residual = static_cast<const uint16_t*>(call.residual);
    p.y = static_cast<uint16_t*>(call.y);
    p.ldx = call.ldx, p.ldr = call.ldr, p.ldy = call.ldy;
    p.tokens = static_cast<int>(call.tokens);
    p.out = static_cast<int>(call.out);
    p.in = static_cast<int>(call.in);
    p.activated = call.activation != Activation::none;
    p.gate = gate_of(call.activation);
    p.parts = parts;
    if (parts > 1) {
        p.arrived = static_cast<uint32_t*>(call.workspace);
        p.partials = reinterpret_cast<float*>(static_cast<char*>(call.workspace) + counter_bytes);
    }
    return p;
}

}  // namespace

int sm80_configs() { return config_count; }

ConfigInfo sm80_config(int config) {
    const Config& c = configs[config];
    return with_tile(c.tile, [&](auto tile) {
        return ConfigInfo{c.name, tile.out, tile.tokens, stage_in, tile.stages, c.parts ? 0 : 1};
    });
}

size_t sm80_workspace(int config, const Linear24Call& call) {
    if (why_nowhere(config, call)) return 0;
    const Config& c = configs[config];
    return with_tile(c.tile, [&](auto tile) {
        using Tile = decltype(tile);
        const int64_t count = tiles<Tile>(call.tokens, call.out);
        return static_cast<size_t>(workspace_bytes<Tile>(count, possible_parts(c, count, call.in)));
    });
}

const char* sm80_why_not(int config, const Linear24Call& call) {
    if (const char* reason = why_nowhere(config, call)) return reason;
    const int available = shared_memory_of_device();
    const int needed = with_tile(configs[config].tile, [](auto tile) { return tile.shared_bytes; });
    return available && available < needed ? "the tile needs more shared memory than the GPU has" : nullptr;
}

int sm80_run(int config, const Linear24Call& call) {
    if (why_nowhere(config, call)) return cudaErrorInvalidValue;
    const Config& c = configs[config];
    return with_tile(c.tile, [&](auto tile) -> int {
        using Tile = decltype(tile);
        const int64_t count = tiles<Tile>(call.tokens, call.out);
        const int parts = chosen_parts<Tile>(c, count, call.in, call.sms);
        if (static_cast<size_t>(workspace_bytes<Tile>(count, parts)) > call.workspace_bytes)
            return cudaErrorInvalidValue;
        if (parts > 1 && call.workspace_is_fresh) {
            if (const auto error = cudaMemsetAsync(call.workspace, 0, counter_bytes, call.stream)) return error;
        }
        return launch(c.tile, call.dtype, problem_of(call, parts), call.stream);
    });
}

}  // namespace vlprune

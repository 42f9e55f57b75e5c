// linear24 on sm_80, sm_86, sm_89 and, where nothing better fits, later GPUs: what Python calls, and launches.
#include <atomic>

#include "cuda/linear24.h"
#include "cuda/linear24_sm80_configs.h"
#include "cuda/linear24_sm80_device.cuh"
#include "cuda/linear24_sm80_epilogue.h"

namespace vlprune {

namespace sm80 {

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, Tile::resident) linear24_kernel(const Problem problem) {
    extern __shared__ __align__(128) unsigned char shared[];
    DeviceMachine machine(shared);
    linear24_block<T, Tile>(machine, problem, blockIdx.x);
}

namespace {

// A kernel may use more than 48 KB of shared memory only after this was said once on each device.
template <class T, class Tile>
cudaError_t allow_shared_memory() {
    constexpr int bits = 64;
    static std::atomic<uint64_t> allowed{0};
    int device;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    const uint64_t bit = uint64_t{1} << device % bits;
    if (device < bits && (allowed.load(std::memory_order_relaxed) & bit)) return cudaSuccess;
    const cudaError_t error = cudaFuncSetAttribute(
        linear24_kernel<T, Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::shared_bytes);
    if (!error) allowed.fetch_or(bit, std::memory_order_relaxed);
    return error;
}

template <class T, class Tile>
cudaError_t launch(const Problem& problem, cudaStream_t stream) {
    if (const cudaError_t error = allow_shared_memory<T, Tile>()) return error;
    const int64_t blocks = tiles<Tile>(problem.tokens, problem.out) * problem.parts;
    linear24_kernel<T, Tile>
        <<<static_cast<unsigned>(blocks), Tile::threads, Tile::shared_bytes, stream>>>(problem);
    return cudaGetLastError();
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

bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % chunk == 0; }

}  // namespace
}  // namespace sm80

using namespace sm80;

int sm80_configs() { return config_count; }

ConfigInfo sm80_config(int config) {
    const Config& c = configs[config];
    return with_tile(c.tile, [&](auto tile) {
        return ConfigInfo{c.name, tile.out, tile.tokens, stage_in, tile.stages, c.parts ? 0 : 1};
    });
}

size_t sm80_workspace(int config, const Linear24Call& call) {
    const Config& c = configs[config];
    return with_tile(c.tile, [&](auto tile) {
        using Tile = decltype(tile);
        const int64_t count = tiles<Tile>(call.tokens, call.out);
        return static_cast<size_t>(workspace_bytes<Tile>(count, possible_parts(c, count, call.in)));
    });
}

const char* sm80_why_not(int config, const Linear24Call& call) {
    constexpr int64_t largest = int64_t{1} << 24;  // 128 rows further is still a 32-bit offset
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
    const int available = shared_memory_of_device();
    return with_tile(configs[config].tile, [&](auto tile) -> const char* {
        if (tiles<decltype(tile)>(call.tokens, call.out) > INT32_MAX) return "there are more than 2^31 tiles";
        if (available && available < tile.shared_bytes)
            return "the tile needs more shared memory than the GPU has";
        return nullptr;
    });
}

int sm80_run(int config, const Linear24Call& call) {
    const Config& c = configs[config];
    return with_tile(c.tile, [&](auto tile) {
        using Tile = decltype(tile);
        const int64_t count = tiles<Tile>(call.tokens, call.out);
        const int parts = chosen_parts<Tile>(c, count, call.in, call.sms);
        if (static_cast<size_t>(workspace_bytes<Tile>(count, parts)) > call.workspace_bytes)
            return cudaErrorInvalidValue;
        const Problem problem = problem_of(call, parts);
        return call.dtype == DType::bf16 ? launch<BFloat16, Tile>(problem, call.stream)
                                         : launch<Float16, Tile>(problem, call.stream);
    });
}

}  // namespace vlprune

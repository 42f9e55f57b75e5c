// Runs a compiled config on the host: CUDA's runtime and the driver's two functions are the ones below, which
// write down what they are asked for. Prints a line of JSON for each thing that was asked.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "cuda/linear24_sm90.h"

using namespace vlprune;

namespace {

constexpr uint64_t mark = 0x6d61705f6f665f78;
constexpr DType dtype = DType::VLPRUNE_DTYPE;

void* at(int64_t place, int64_t offset) { return reinterpret_cast<void*>((place << 28) + offset); }
struct Map {
    uint64_t mark, address, number, rest[13];
};

template <class T>
void list(const char* name, const T* values, int count) {
    std::printf(", \"%s\": [", name);
    for (int i = 0; i < count; ++i) std::printf("%s%llu", i ? ", " : "", (unsigned long long)values[i]);
    std::printf("]");
}

CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps,
                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                CUtensorMapFloatOOBfill filled) {
    static uint64_t number = 0;
    *reinterpret_cast<Map*>(map) = {mark, reinterpret_cast<uint64_t>(address), number++, {}};
    std::printf("{\"what\": \"encode\", \"address\": %llu, \"type\": %d, \"swizzle\": %d, \"others\": %d",
                (unsigned long long)address, type, swizzle, interleave + filled);
    list("steps", steps, rank);
    list("sizes", sizes, rank);
    list("strides", strides, rank - 1);
    list("box", box, rank);
    std::printf("}\n");
    return CUDA_SUCCESS;
}

CUresult replace(CUtensorMap* map, void* address) {
    auto* const encoded = reinterpret_cast<Map*>(map);
    if (encoded->mark != mark) return CUDA_ERROR_INVALID_VALUE;
    encoded->address = reinterpret_cast<uint64_t>(address);
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    *function = nullptr;
    if (!std::strcmp(name, "cuTensorMapEncodeTiled")) *function = reinterpret_cast<void*>(encode);
    if (!std::strcmp(name, "cuTensorMapReplaceAddress")) *function = reinterpret_cast<void*>(replace);
    *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* launch, const void*, void** arguments) {
    const dim3 grid = launch->gridDim;
    std::printf("{\"what\": \"launch\", \"grid\": [%u, %u, %u], \"cluster\": [%u, %u], \"shared\": %zu, \"maps\": [",
                grid.x, grid.y, grid.z, launch->attrs[0].val.clusterDim.x, launch->attrs[0].val.clusterDim.y,
                launch->dynamicSmemBytes);
    const auto* parameters = static_cast<const char*>(arguments[0]);
    int end = 0;
    for (int found = 0; found < 5; end += 64) {
        const auto* map = reinterpret_cast<const Map*>(parameters + end);
        if (map->mark == mark) std::printf("%s%llu", found++ ? ", " : "", (unsigned long long)map->address);
    }
    std::printf("], \"places\": [");
    // Of bias and scales, which are no tensor maps, as far as the last map.
    uint64_t address;
    for (int at = 0, found = 0; at < end; at += 8) {
        std::memcpy(&address, parameters + at, 8);
        for (const uint64_t place : {4, 7, 8, 9})
            if (address == place << 28) std::printf("%s%d", found++ ? ", " : "", (int)place);
    }
    std::printf("], \"threads\": %u, \"parameters\": \"", launch->blockDim.x);
    // All, for who knows their size.
    const char* const bytes = std::getenv("PARAMETER_BYTES");
    for (int at = 0; bytes && at < std::atoi(bytes); ++at) std::printf("%02x", parameters[at] & 0xff);
    std::printf("\"}\n");
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* start, int value, size_t bytes, cudaStream_t) {
    std::printf("{\"what\": \"memset\", \"address\": %llu, \"value\": %d, \"bytes\": %zu}\n",
                (unsigned long long)start, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
    std::printf("{\"what\": \"attribute\", \"number\": %d, \"value\": %d}\n", attribute, value);
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 132, cudaSuccess; }

// What nvcc's objects register at start.
void** __cudaRegisterFatBinary(void*) {
    static void* handle = nullptr;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction() {}
void __cudaRegisterVar() {}
void __cudaGetKernel() {}
void __cudaLaunchKernel() {}
void __cudaPopCallConfiguration() {}
}

// arguments: for each call tokens, out, in, ldx, ldr (0: no residual), ldy, the offset added to addresses, and
// the multiprocessors
int main(int count, char** arguments) {
    const sm90::Instance instance = sm90::VLPRUNE_CONFIG<dtype>();
    constexpr bool scaled = dtype == DType::s8 || dtype == DType::e4m3;
    for (int i = 1; i + 7 < count; i += 8) {
        int64_t n[8];
        for (int j = 0; j < 8; ++j) n[j] = std::atoll(arguments[i + j]);
        const auto moved = [&](int64_t place) { return at(place, n[6]); };
        Linear24Call call{moved(1), n[3], moved(2), moved(3), at(4, 0), n[4] ? moved(5) : nullptr, n[4], moved(6),
                          n[5], n[0], n[1], n[2], dtype, Activation::gelu, nullptr, 0, true,
                          static_cast<int>(n[7]), nullptr};
        if (scaled) {
            call.x_scale = static_cast<const float*>(at(7, 0)), call.w_scale = static_cast<const float*>(at(8, 0));
            call.y_dtype = DType::bf16;
        }
        call.workspace = at(9, 0), call.workspace_bytes = instance.workspace(call);
        std::printf("{\"what\": \"run\", \"code\": %d, \"workspace\": %zu}\n", instance.run(call),
                    call.workspace_bytes);
    }
}

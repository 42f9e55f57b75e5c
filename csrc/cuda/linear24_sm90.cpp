// linear24 on Hopper: the list of its configs, what they cannot do, and the way to the one that was asked for.
#include "cuda/linear24_sm90.h"

#include <cuda_runtime_api.h>

#include <array>
#include <limits>

namespace vlprune {

namespace {

using namespace sm90;

template <DType dtype>
const auto& instances() {
    static const std::array<Instance, 9> all{
        cooperative_256x128<dtype>(), cooperative_128x192<dtype>(), ping_pong_128x128<dtype>(),
        ping_pong_64x128<dtype>(),    ping_pong_64x64<dtype>(),     ping_pong_64x32<dtype>(),
        split_128x128<dtype>(),       split_128x64<dtype>(),        split_128x32<dtype>()};
    return all;
}

template <DType dtype>
const auto& scaled_instances() {
    static const std::array<Instance, 4> all{cooperative_128x192<dtype>(), ping_pong_128x128<dtype>(),
                                             ping_pong_64x64<dtype>(), split_128x32<dtype>()};
    return all;
}

const Instance& instance_of(int config, DType dtype) {
    const auto index = static_cast<size_t>(config);
    return dtype == DType::f16 ? instances<DType::f16>()[index] : instances<DType::bf16>()[index];
}

const Instance& scaled_instance_of(int config, DType dtype) {
    const auto index = static_cast<size_t>(config);
    return dtype == DType::e4m3 ? scaled_instances<DType::e4m3>()[index] : scaled_instances<DType::s8>()[index];
}

const char* why_not_sizes(const Linear24Call& call) {
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    if (call.tokens < 1 || call.out < 1 || call.in < 1) return "sm90 needs one token, input and output or more";
    if (call.tokens > most) return "sm90 takes fewer than 2^31 tokens";
    // CUTLASS counts the indices of all outputs, up to a whole block of 64, times 128 in 32 bits.
    constexpr int64_t most_of_weight = (1 << 24) - 64;
    if (call.out > most_of_weight || call.in > most_of_weight) return "sm90 takes in and out below 2^24 - 63";
    return nullptr;
}

}  // namespace

int sm90_configs() { return static_cast<int>(instances<DType::bf16>().size()); }

ConfigInfo sm90_config(int config) { return instance_of(config, DType::bf16).info; }

// The copy engine moves 16 bytes at a time and wants them of every row it starts: 8 elements of x, y and the
// residual, and 8 kept of a weight's row, which are 16 inputs.
const char* sm90_why_not(int config, const Linear24Call& call) {
    if (config < 0 || config >= sm90_configs()) return "there is no such config";
    if (call.dtype != DType::bf16 && call.dtype != DType::f16) return "sm90 takes bfloat16 or float16";
    if (call.in % 16 != 0) return "sm90 needs in_features divisible by 16";
    if (call.out % 8 != 0) return "sm90 needs out_features divisible by 8";
    if (call.ldx % 8 != 0 || call.ldy % 8 != 0 || call.ldr % 8 != 0) {
        return "sm90 needs rows of x, y and the residual that start at multiples of 16 bytes";
    }
    return why_not_sizes(call);
}

size_t sm90_workspace(int config, const Linear24Call& call) {
    return sm90_why_not(config, call) == nullptr ? instance_of(config, call.dtype).workspace(call) : 0;
}

int sm90_run(int config, const Linear24Call& call) {
    if (sm90_why_not(config, call) != nullptr) return cudaErrorInvalidValue;
    return instance_of(config, call.dtype).run(call);
}

int sm90_scaled_configs() { return static_cast<int>(scaled_instances<DType::s8>().size()); }

ConfigInfo sm90_scaled_config(int config) { return scaled_instance_of(config, DType::s8).info; }

// The same 16 bytes are 16 elements of x and 32 inputs of a weight's row; y and the residual have 16 bits.
const char* sm90_scaled_why_not(int config, const Linear24Call& call) {
    if (config < 0 || config >= sm90_scaled_configs()) return "there is no such config";
    if (call.dtype != DType::s8 && call.dtype != DType::e4m3) return "sm90 takes int8 or float8_e4m3fn";
    if (call.y_dtype != DType::bf16 && call.y_dtype != DType::f16) return "sm90 gives bfloat16 or float16";
    if (call.in % 32 != 0) return "sm90 needs in_features divisible by 32 in 8 bits";
    if (call.out % 8 != 0) return "sm90 needs out_features divisible by 8";
    if (call.ldx % 16 != 0 || call.ldy % 8 != 0 || call.ldr % 8 != 0) {
        return "sm90 needs rows of x, y and the residual that start at multiples of 16 bytes";
    }
    return why_not_sizes(call);
}

size_t sm90_scaled_workspace(int config, const Linear24Call& call) {
    return sm90_scaled_why_not(config, call) == nullptr ? scaled_instance_of(config, call.dtype).workspace(call)
                                                        : 0;
}

int sm90_scaled_run(int config, const Linear24Call& call) {
    if (sm90_scaled_why_not(config, call) != nullptr) return cudaErrorInvalidValue;
    return scaled_instance_of(config, call.dtype).run(call);
}

}  // namespace vlprune

// The host's part of linear24 without a driver: what is answered for each config and size. A config of Hopper
// that is asked for its workspace, or to run, where it cannot ends the program.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "cuda/linear24_sm80.h"
#include "cuda/linear24_sm90.h"

using namespace vlprune;

// As on a machine without one.
extern "C" {
cudaError_t cudaGetDevice(int*) { return cudaErrorInsufficientDriver; }
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { std::abort(); }
cudaError_t cudaGetLastError() { return cudaSuccess; }
}

extern "C" cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }

namespace vlprune {

namespace sm80 {
cudaError_t launch(int, DType, const Problem&, cudaStream_t) { return cudaSuccess; }
}  // namespace sm80

namespace sm90 {

size_t workspace(const Linear24Call& call) {
    if (call.tokens < 1 || call.out < 1 || call.in < 1 || call.dtype == DType::f32) std::abort();
    return 4096;
}
int run(const Linear24Call& call) { return workspace(call) == 0; }

#define CONFIG(name)                                                                        \
    template <> Instance name<DType::bf16>() { return {{#name, 1, 1, 1, 1, 1}, workspace, run}; } \
    template <> Instance name<DType::f16>() { return {{#name, 1, 1, 1, 1, 1}, workspace, run}; } \
    template <> Instance name<DType::s8>() { return {{#name, 1, 1, 1, 1, 1}, workspace, run}; } \
    template <> Instance name<DType::e4m3>() { return {{#name, 1, 1, 1, 1, 1}, workspace, run}; }
CONFIGS
}  // namespace sm90
}  // namespace vlprune

int main() {
    const auto ask = [](const char* architecture, int config, const Linear24Call& call, auto why_not,
                        auto workspace, auto run) {
        const char* const reason = why_not(config, call);
        std::printf("%s|%d|%lld|%lld|%lld|%d|%s|%zu|%d\n", architecture, config, (long long)call.tokens,
                    (long long)call.out, (long long)call.in, static_cast<int>(call.dtype), reason ? reason : "",
                    workspace(config, call), run(config, call));
    };
    constexpr int64_t far = int64_t{1} << 40;
    for (const int64_t tokens : {int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{50}, far})
        for (const int64_t out : {int64_t{-8}, int64_t{0}, int64_t{12}, int64_t{768}, far})
            for (const int64_t in : {int64_t{-64}, int64_t{0}, int64_t{8}, int64_t{768}, far})
                for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::s8, DType::e4m3}) {
                    Linear24Call call{};
                    call.tokens = tokens, call.out = call.ldy = call.ldr = out, call.in = call.ldx = in;
                    call.dtype = dtype, call.y_dtype = DType::bf16, call.sms = 132;
                    call.workspace_bytes = size_t{1} << 40;
                    for (const int config : {-1000000, -1, 1000000})
                        ask("sm80", config, call, sm80_why_not, sm80_workspace, sm80_run),
                            ask("sm90", config, call, sm90_why_not, sm90_workspace, sm90_run),
                            ask("sm90_scaled", config, call, sm90_scaled_why_not, sm90_scaled_workspace,
                                sm90_scaled_run);
                    for (int config = 0; config <= sm80_configs(); ++config)
                        ask("sm80", config, call, sm80_why_not, sm80_workspace, sm80_run);
                    for (int config = 0; config <= sm90_configs(); ++config)
                        ask("sm90", config, call, sm90_why_not, sm90_workspace, sm90_run);
                    for (int config = 0; config <= sm90_scaled_configs(); ++config)
                        ask("sm90_scaled", config, call, sm90_scaled_why_not, sm90_scaled_workspace,
                            sm90_scaled_run);
                }
}

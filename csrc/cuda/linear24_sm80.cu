// linear24 on sm_80, sm_86, sm_89 and, where nothing better fits, later GPUs: the kernels and their launch.
#include "cuda/linear24_sm80.h"

#include "cuda/linear24_sm80_configs.h"
#include "cuda/linear24_sm80_device.cuh"
#include "cuda/linear24_sm80_epilogue.h"
#include "cuda/shared_memory.h"

namespace vlprune::sm80 {

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, Tile::resident) linear24_kernel(const Problem problem) {
    extern __shared__ __align__(128) unsigned char shared[];
    DeviceMachine machine(shared);
    linear24_block<T, Tile>(machine, problem, blockIdx.x);
}

namespace {

template <class T, class Tile>
cudaError_t launch(const Problem& problem, cudaStream_t stream) {
    constexpr auto kernel = linear24_kernel<T, Tile>;
    if (const cudaError_t error = allow_shared_memory<kernel>(Tile::shared_bytes)) return error;
    const int64_t blocks = tiles<Tile>(problem.tokens, problem.out) * problem.parts;
    cudaGetLastError();  // of a launch before, that was told of
    kernel<<<static_cast<unsigned>(blocks), Tile::threads, Tile::shared_bytes, stream>>>(problem);
    return cudaGetLastError();
}

}  // namespace

cudaError_t launch(int tile, DType dtype, const Problem& problem, cudaStream_t stream) {
    return with_tile(tile, [&](auto chosen) {
        using Tile = decltype(chosen);
        return dtype == DType::bf16 ? launch<BFloat16, Tile>(problem, stream)
                                    : launch<Float16, Tile>(problem, stream);
    });
}

}  // namespace vlprune::sm80

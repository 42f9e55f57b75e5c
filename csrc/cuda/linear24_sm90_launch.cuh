// Launching a kernel: its parameters are made once for each shape, after that only addresses change.
//
// Making them encodes five tensor maps through the driver and works out the schedule. A call with a shape
// seen before copies the result, puts the addresses of this call in, and launches.
#pragma once
#include <cuda_runtime.h>
#include <cudaTypedefs.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/linear24.h"
#include "cuda/linear24_sm90_kernel.cuh"
#include "cuda/shared_memory.h"

namespace vlprune::sm90 {

// Sizes and strides: all that the parameters depend on but addresses, activation and residual.
using Key = std::array<int64_t, 7>;
constexpr size_t max_shapes = 4096;  // then it starts anew: lengths of texts may vary for ever

// Locks lie at the end of the workspace, in the same place for every shape; sums before them.
constexpr size_t lock_bytes = 4096;
static_assert(lock_bytes + 127 <= zeroed_workspace, "it may end up to 127 bytes after them");
constexpr int most_sms = 152;
constexpr int most_shared_bytes = cutlass::gemm::collective::detail::sm90_smem_capacity_bytes;

template <class Kernel>
constexpr bool splits_in = std::is_same_v<typename Kernel::TileSchedulerTag, Split>;

inline int64_t divided_up(int64_t size, int64_t by) { return (size + by - 1) / by; }

template <class Kernel>
int64_t tiles(const Linear24Call& call) {
    using Tile = typename Kernel::TileShape;
    return divided_up(call.out, cute::size<0>(Tile{})) * divided_up(call.tokens, cute::size<1>(Tile{}));
}

// Parts of `in`: as many as fill the machine, with two tiles or more in each.
template <class Kernel>
int splits(const Linear24Call& call) {
    if (!splits_in<Kernel>) return 1;
    const int64_t fill = (call.sms > 0 && call.sms < most_sms ? call.sms : most_sms) / tiles<Kernel>(call);
    const int64_t most = divided_up(call.in, cute::size<2>(typename Kernel::TileShape{})) / 2;
    return static_cast<int>(std::max<int64_t>(1, std::min(fill, most)));
}

template <class Kernel>
size_t sum_bytes(const Linear24Call& call) {
    using Tile = typename Kernel::TileShape;
    return tiles<Kernel>(call) * cute::size<0>(Tile{}) * cute::size<1>(Tile{}) * sizeof(float);
}

template <class Kernel>
size_t workspace(const Linear24Call& call) {
    return splits<Kernel>(call) > 1 ? sum_bytes<Kernel>(call) + lock_bytes : 0;
}

template <class Kernel>
typename Kernel::Params make_params(const Linear24Call& call) {
    using MainLoop = typename Kernel::CollectiveMainloop;
    using Element = typename Kernel::ElementB;
    using Stored = typename Kernel::ElementD;
    const int out = static_cast<int>(call.out), tokens = static_cast<int>(call.tokens);
    const int in = static_cast<int>(call.in);
    const auto shape = cute::make_shape(out, tokens, in, 1);
    // Indices of no inputs have to be in ascending order too, so there are some for all of the last tile.
    constexpr int tile = cute::size<2>(typename Kernel::TileShape{});
    const auto padded = cute::make_shape(out, tokens, static_cast<int>(divided_up(in, tile)) * tile, 1);
    // A residual that is not there is never read, but its tensor map is made all the same.
    const int64_t ldr = call.residual ? call.ldr : call.ldy;
    const void* residual = call.residual ? call.residual : call.y;

    typename Kernel::Arguments arguments{};
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    arguments.problem_shape = shape;
    arguments.mainloop = {static_cast<const Element*>(call.values),
                          MainLoop::SparseConfig::fill_layoutA(shape),
                          static_cast<const Element*>(call.x),
                          cute::make_stride(call.ldx, cute::_1{}, int64_t{0}),
                          static_cast<const typename MainLoop::ElementE*>(call.meta),
                          MainLoop::SparseConfig::fill_layoutE(padded)};
    arguments.epilogue.ptr_C = static_cast<const Stored*>(residual);
    arguments.epilogue.dC = cute::make_stride(cute::_1{}, ldr, int64_t{0});
    arguments.epilogue.ptr_D = static_cast<Stored*>(call.y);
    arguments.epilogue.dD = cute::make_stride(cute::_1{}, call.ldy, int64_t{0});
    constexpr int cluster = cute::size(typename Kernel::ClusterShape{});
    arguments.hw_info.sm_count = call.sms / cluster * cluster;
    if constexpr (splits_in<Kernel>) {
        using Mode = typename Kernel::TileScheduler::DecompositionMode;
        arguments.scheduler.splits = splits<Kernel>(call);
        arguments.scheduler.decomposition_mode =
            arguments.scheduler.splits > 1 ? Mode::SplitK : Mode::DataParallel;
    }
    return Kernel::to_underlying_arguments(arguments, nullptr);
}

using ReplaceAddress = PFN_cuTensorMapReplaceAddress_v12000;

inline ReplaceAddress replace_address() {
    static const ReplaceAddress found = [] {
        void* entry = nullptr;
        cudaDriverEntryPointQueryResult result{};
        cudaGetDriverEntryPointByVersion("cuTensorMapReplaceAddress", &entry, 12000, cudaEnableDefault, &result);
        return reinterpret_cast<ReplaceAddress>(result == cudaDriverEntryPointSuccess ? entry : nullptr);
    }();
    return found;
}

inline char* locks_of(const Linear24Call& call) {
    return static_cast<char*>(call.workspace) + call.workspace_bytes / 128 * 128 - lock_bytes;
}

// Puts this call's addresses into the parameters of its shape; false where the driver refuses one.
template <class Kernel>
bool point_to(const Linear24Call& call, typename Kernel::Params& params) {
    const ReplaceAddress replace = replace_address();
    const auto points = [&](auto& copy, const void* address) {
        return replace(&copy.tma_desc_, const_cast<void*>(address)) == CUDA_SUCCESS;
    };
    auto& [activated, residual, end] = params.epilogue.thread;
    if constexpr (sizeof(typename Kernel::ElementB) == 1) {
        auto& [output_scale, product, bias, add] = activated.op_0;
        output_scale.ptr_col = call.w_scale;
        product.op_0.ptr_row = call.x_scale;
        bias.ptr_col = static_cast<const float*>(call.bias);
        end.set = call.y_dtype == DType::f16;
    } else {
        activated.op_0.op_1.ptr_col = static_cast<const typename Kernel::ElementB*>(call.bias);
    }
    activated.op_1 = {call.activation != Activation::none, gate_of(call.activation)};
    residual.set = call.residual != nullptr;
    if constexpr (splits_in<Kernel>) {
        if (splits<Kernel>(call) > 1) {
            params.scheduler.reduction_workspace_ = locks_of(call) - sum_bytes<Kernel>(call);
        }
    }
    return replace != nullptr && points(params.mainloop.tma_load_a, call.values) &&
           points(params.mainloop.tma_load_e, call.meta) && points(params.mainloop.tma_load_b, call.x) &&
           points(params.epilogue.tma_load_c, call.residual ? call.residual : call.y) &&
           points(params.epilogue.tma_store_d, call.y);
}

// CUTLASS prints what the driver refused to encode and goes on with a map of zeros.
template <class... Copies>
bool encoded(const Copies&... copies) {
    const CUtensorMap zeros{};
    return (... && (std::memcmp(copies.get_tma_descriptor(), &zeros, sizeof zeros) != 0));
}

template <class Kernel>
bool params_for(const Linear24Call& call, typename Kernel::Params& params) {
    static std::mutex mutex;
    static std::map<Key, typename Kernel::Params> made;
    const int64_t ldr = call.residual ? call.ldr : call.ldy;
    const Key key{call.tokens, call.out, call.in, call.ldx, ldr, call.ldy, call.sms};
    const std::lock_guard<std::mutex> guard(mutex);
    if (const auto found = made.find(key); found != made.end()) {
        params = found->second;
        return true;
    }
    params = make_params<Kernel>(call);
    const auto& [main_loop, epilogue] = std::tie(params.mainloop, params.epilogue);
    if (!encoded(main_loop.tma_load_a, main_loop.tma_load_e, main_loop.tma_load_b, epilogue.tma_load_c,
                 epilogue.tma_store_d)) {
        return false;
    }
    if (made.size() == max_shapes) made.clear();
    made.emplace(key, params);
    return true;
}

inline bool aligned(const Linear24Call& call) {
    const auto bits = reinterpret_cast<uintptr_t>(call.x) | reinterpret_cast<uintptr_t>(call.values) |
                      reinterpret_cast<uintptr_t>(call.meta) | reinterpret_cast<uintptr_t>(call.residual) |
                      reinterpret_cast<uintptr_t>(call.y);
    return bits % 16 == 0;
}

template <class Kernel>
int run(const Linear24Call& call) {
    static_assert(Kernel::SharedStorageSize <= most_shared_bytes, "a block has less shared memory");
    if (!aligned(call)) return cudaErrorMisalignedAddress;
    if (call.workspace_bytes < workspace<Kernel>(call)) return cudaErrorInvalidValue;
    constexpr auto kernel = cutlass::device_kernel<Kernel>;
    if (const cudaError_t error = allow_shared_memory<kernel>(Kernel::SharedStorageSize)) return error;
    typename Kernel::Params params;
    if (!params_for<Kernel>(call, params) || !point_to<Kernel>(call, params)) return cudaErrorInvalidValue;
    if (call.workspace_is_fresh && workspace<Kernel>(call) != 0) {
        if (const auto error = cudaMemsetAsync(locks_of(call), 0, lock_bytes, call.stream)) return error;
    }

    using Cluster = typename Kernel::ClusterShape;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {cute::size<0>(Cluster{}), cute::size<1>(Cluster{}), 1};
    cudaLaunchConfig_t launch{};
    launch.gridDim = Kernel::get_grid_shape(params);
    launch.blockDim = Kernel::get_block_shape();
    launch.dynamicSmemBytes = Kernel::SharedStorageSize;
    launch.stream = call.stream;
    launch.attrs = &cluster;
    launch.numAttrs = 1;
    void* arguments[] = {&params};
    return cudaLaunchKernelExC(&launch, reinterpret_cast<const void*>(kernel), arguments);
}

}  // namespace vlprune::sm90

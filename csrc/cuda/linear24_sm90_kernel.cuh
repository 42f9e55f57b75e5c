// The kernel of one config and dtype: CUTLASS's collectives for Hopper, put together.
//
// wgmma.sp takes the sparse matrix on the left, so the product is y^T = W x^T: CUTLASS's M is `out`, its N the
// tokens, its K `in`. Seen so, x and y as torch stores them are column-major, and nothing is transposed.
#pragma once
#include "cuda/linear24_sm90_epilogue.cuh"
#include "cuda/linear24_sm90_split.cuh"
#include "cutlass/epilogue/collective/collective_builder.hpp"
// The parts of collective_builder.hpp and gemm_universal.hpp for this architecture: reading those of all the
// others takes half the time of compiling an instance.
#include "cutlass/gemm/collective/collective_mma_decl.hpp"
#include "cutlass/gemm/collective/sm90_sparse_mma_tma_gmma_ss_warpspecialized.hpp"
#include "cutlass/gemm/collective/collective_builder_decl.hpp"
#include "cutlass/gemm/collective/builders/sm90_sparse_gmma_builder.inl"
#include "cutlass/gemm/kernel/gemm_universal_decl.h"
#include "cutlass/gemm/kernel/sm90_gemm_tma_warpspecialized_cooperative.hpp"
#include "cutlass/gemm/kernel/sm90_gemm_tma_warpspecialized_pingpong.hpp"

namespace vlprune::sm90 {

// 128 inputs of 16 bits, or 256 of 8, in every tile: a narrower one would want the metadata in another order
// (linear24_sm90_meta.cpp).
template <class Element>
constexpr int tile_in = 256 / sizeof(Element);
// Elements in the 16 bytes that the copy engine asks of addresses and strides.
template <class Element>
constexpr int alignment = 16 / sizeof(Element);

// Blocks of a cluster take neighbouring outputs and load their tokens once for all of them. The epilogue goes
// through shared memory `Stored` tokens at a time, or as many as CUTLASS chooses: 16 instead of its 32 leave the
// largest tiles a third stage.
template <int Out, int Tokens, int Blocks = 1, int Stored = 0>
struct Shape {
    template <class Element>
    using Tile = cute::Shape<cute::Int<Out>, cute::Int<Tokens>, cute::Int<tile_in<Element>>>;
    using Cluster = cute::Shape<cute::Int<Blocks>, cute::_1, cute::_1>;
    using Store = cute::conditional_t<Stored == 0, cutlass::epilogue::collective::EpilogueTileAuto,
                                      cute::Shape<cute::_128, cute::Int<Stored>>>;
};

// CUTLASS has E4M3 under names of its own: here the one that leaves the sums where the tensor cores keep them,
// in some 14 bits. The other adds them up in registers, which the larger tiles do not have, after every fourth
// instruction; an instruction of sparse weights takes twice the inputs, so a sum is rounded half as often as
// that of the dense product is, and E4M3 itself has 4 bits.
template <class MainLoop, class Element>
using MainLoopOf = cute::conditional_t<
    !std::is_same_v<Element, cutlass::float_e4m3_t>, MainLoop,
    cute::conditional_t<std::is_same_v<MainLoop, cutlass::gemm::KernelTmaWarpSpecializedPingpong>,
                        cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum,
                        cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum>>;

// Two groups of warps share each tile.
struct Cooperative {
    using MainLoop = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
    using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
    using Scheduler = cutlass::gemm::PersistentScheduler;
};

// The same, and `in` is split where there are few tiles.
struct CooperativeSplit : Cooperative {
    using Scheduler = Split;
};

// Each of two groups of warps has its own tile: one stores while the other multiplies.
struct PingPong {
    using MainLoop = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
    using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
    using Scheduler = cutlass::gemm::PersistentScheduler;
};

template <class Element, class Shape, class Schedule>
struct Linear24 {
    using Tile = typename Shape::template Tile<Element>;
    using Cluster = typename Shape::Cluster;

    using Accumulator = cute::conditional_t<std::is_same_v<Element, int8_t>, int32_t, float>;
    using Stored = StoredOf<Element>;

    using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, Tile, Cluster, typename Shape::Store,
        Accumulator, float, Stored, cutlass::layout::ColumnMajor, alignment<Stored>, Stored,
        cutlass::layout::ColumnMajor, alignment<Stored>, typename Schedule::Epilogue,
        EpilogueOf<Element, Tile>>::CollectiveOp;

    // Of the weight the builder counts both, the kept and the dropped: 16 bytes are 16 inputs, or 32.
    using CollectiveMainLoop = typename cutlass::gemm::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, Element, cutlass::layout::RowMajor,
        2 * alignment<Element>, Element, cutlass::layout::ColumnMajor, alignment<Element>, Accumulator, Tile,
        Cluster,
        cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
            sizeof(typename CollectiveEpilogue::SharedStorage))>,
        MainLoopOf<typename Schedule::MainLoop, Element>>::CollectiveOp;

    using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainLoop,
                                                        CollectiveEpilogue, typename Schedule::Scheduler>;
};

}  // namespace vlprune::sm90

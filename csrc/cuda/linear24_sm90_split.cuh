// `in` split over several thread blocks, for products with fewer tiles than multiprocessors.
//
// CUTLASS's stream-K scheduler adds the parts in a fixed order (so results repeat) under locks that have to be
// zero at the start. This one puts every lock back to zero, so no memset runs between two calls.
#pragma once
#include "cutlass/gemm/kernel/tile_scheduler.hpp"

namespace vlprune::sm90 {

struct Split {};  // the scheduler's tag

// Only the block with the last part of a tile comes here, when all the others have added theirs: nobody
// reads the lock again before the next launch.
template <class Barriers>
struct LastOfTile : Barriers {
    using T = typename Barriers::T;
    CUTLASS_DEVICE static void wait_eq(uint32_t barrier, void* locks, int thread, int lock, T parts) {
        Barriers::wait_eq(barrier, locks, thread, lock, parts);
        if (thread == 0) static_cast<T*>(locks)[lock] = 0;
    }
};

template <class Tile, class Cluster>
struct SplitScheduler : cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90StreamK<Tile, Cluster> {
    using Base = cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90StreamK<Tile, Cluster>;
    using typename Base::Params;
    using typename Base::WorkTileInfo;
    using Base::Base;

    template <class Accumulators>
    CUTLASS_DEVICE static void fixup(const Params& params, const WorkTileInfo& work, Accumulators& sums,
                                     uint32_t barriers, uint32_t barrier) {
        constexpr auto first = static_cast<uint32_t>(cutlass::arch::ReservedNamedBarriers::StreamkBarrier0);
        using Named = cutlass::NamedBarrierManager<cutlass::NumThreadsPerWarpGroup, first, 2>;
        if (Base::compute_epilogue(work, params)) {
            Base::template fixup_helper<Accumulators, LastOfTile<Named>>(params, work, sums, barriers, barrier);
        } else {
            Base::template fixup_helper<Accumulators, Named>(params, work, sums, barriers, barrier);
        }
    }
};

}  // namespace vlprune::sm90

namespace cutlass::gemm::kernel::detail {

template <class Tile, class Cluster, uint32_t Stages>
struct TileSchedulerSelector<vlprune::sm90::Split, arch::Sm90, Tile, Cluster, Stages> {
    using Scheduler = vlprune::sm90::SplitScheduler<Tile, Cluster>;
};

}  // namespace cutlass::gemm::kernel::detail

// act(sum + bias) + residual, as CUTLASS's epilogue visits a tile: in float32, rounded once, at the end.
//
// What a call has of these is decided at run time, so one compiled kernel serves all: the branches are the
// same for every thread, and an instance takes a minute to compile.
#pragma once
#include "cuda/linear24_activation.cuh"
#include "cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp"

namespace vlprune::sm90 {

namespace fusion = cutlass::epilogue::fusion;

struct ActivateArguments {
    bool active = false;
    Gate gate{};
};

// Activates a fragment; CUTLASS hands the arguments to each call.
template <class Fragment>
struct Activate {
    using Arguments = ActivateArguments;

    CUTLASS_DEVICE Fragment operator()(const Fragment& sums, const Arguments& arguments) const {
        if (!arguments.active) return sums;
        Fragment activated;
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < Fragment::kElements; ++i) activated[i] = gated(sums[i], arguments.gate);
        return activated;
    }
};

// The residual where there is one, else zeros; then its tiles are not loaded either.
template <class Element>
struct Residual : fusion::Sm90VisitorImpl<> {
    struct Arguments {
        bool present = false;
    };
    using Params = Arguments;
    struct SharedStorage {};

    template <class ProblemShape>
    static constexpr Params to_underlying_arguments(const ProblemShape&, const Arguments& arguments, void*) {
        return arguments;
    }
    template <class ProblemShape>
    static size_t get_workspace_size(const ProblemShape&, const Arguments&) {
        return 0;
    }

    CUTLASS_HOST_DEVICE Residual() {}
    CUTLASS_HOST_DEVICE Residual(const Params& params, const SharedStorage&) : present(params.present) {}

    bool present = false;

    CUTLASS_DEVICE bool is_C_load_needed() const { return present; }
    CUTLASS_DEVICE bool is_producer_load_needed() const { return present; }

    template <class Loaded>
    struct Callbacks : fusion::EmptyConsumerStoreCallbacks {
        CUTLASS_DEVICE Callbacks(const Loaded& tile, bool has_residual) : loaded(tile), present(has_residual) {}

        const Loaded& loaded;
        bool present;

        template <class Accumulator, int Size>
        CUTLASS_DEVICE auto visit(const cutlass::Array<Accumulator, Size>&, int part, int, int) {
            using Fragment = cutlass::Array<typename Loaded::value_type, Size>;
            Fragment fragment;
            fragment.clear();
            if (present) fragment = cute::recast<Fragment>(loaded)(part);
            return fragment;
        }
    };

    template <bool ReferenceSource, class... Args>
    CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::detail::ConsumerStoreArgs<Args...>& args) {
        return Callbacks<cute::remove_cvref_t<decltype(args.tCrC)>>(args.tCrC, present);
    }
};

template <class Element, class Tile>
using Bias = fusion::Sm90ColBroadcast<0, Tile, Element, float, cute::Stride<cute::_1, cute::_0, cute::_0>,
                                      /*Alignment=*/1>;

template <template <class> class Function, class To>
using Compute = fusion::Sm90Compute<Function, To, float, cutlass::FloatRoundStyle::round_to_nearest>;

template <class Element, class Tile>
using Sum = fusion::Sm90EVT<Compute<cutlass::plus, float>, fusion::Sm90AccFetch, Bias<Element, Tile>>;

template <class Element, class Tile>
using Epilogue = fusion::Sm90EVT<Compute<cutlass::plus, Element>,
                                 fusion::Sm90EVT<Compute<Activate, float>, Sum<Element, Tile>>,
                                 Residual<Element>>;

}  // namespace vlprune::sm90

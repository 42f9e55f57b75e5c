// act(sum + bias) + residual, as CUTLASS's epilogue visits a tile: in float32, rounded once, at the end. A sum
// of 8-bit products is first multiplied by the scales of its token and output.
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

// What a node is told at run time: one bit.
struct Node : fusion::Sm90VisitorImpl<> {
    struct Arguments {
        bool set = false;
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

    CUTLASS_HOST_DEVICE Node() {}
    CUTLASS_HOST_DEVICE Node(const Params& params, const SharedStorage&) : set(params.set) {}

    bool set = false;
};

// The residual where there is one, else zeros; then its tiles are not loaded either.
struct Residual : Node {
    using Node::Node;

    CUTLASS_DEVICE bool is_C_load_needed() const { return set; }
    CUTLASS_DEVICE bool is_producer_load_needed() const { return set; }

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
        return Callbacks<cute::remove_cvref_t<decltype(args.tCrC)>>(args.tCrC, set);
    }
};

// A number an output: its bias, or its scale.
template <class Element, class Tile>
using OfOutputs = fusion::Sm90ColBroadcast<0, Tile, Element, float, cute::Stride<cute::_1, cute::_0, cute::_0>,
                                      /*Alignment=*/1>;

template <template <class> class Function, class To>
using Compute = fusion::Sm90Compute<Function, To, float, cutlass::FloatRoundStyle::round_to_nearest>;

template <class Element, class Tile>
using Sum = fusion::Sm90EVT<Compute<cutlass::plus, float>, fusion::Sm90AccFetch, OfOutputs<Element, Tile>>;

template <class Element, class Tile>
using Epilogue = fusion::Sm90EVT<Compute<cutlass::plus, Element>,
                                 fusion::Sm90EVT<Compute<Activate, float>, Sum<Element, Tile>>, Residual>;

// y and residual of 8-bit operands: 16 bits of either dtype, which is decided at run time too.
using Either = uint16_t;

template <class Element>
using StoredOf = cute::conditional_t<sizeof(Element) == 1, Either, Element>;

// The residual is added, and the sum rounded to float16 where `set`, else to bfloat16.
struct AddAndRound : Node {
    using Node::Node;

    struct Callbacks : fusion::EmptyConsumerStoreCallbacks {
        CUTLASS_DEVICE explicit Callbacks(bool is_half) : half(is_half) {}

        bool half;

        template <class Element, int Size>
        CUTLASS_DEVICE static auto rounded(const cutlass::Array<float, Size>& sums,
                                           const cutlass::Array<Either, Size>& residual) {
            const auto& added = reinterpret_cast<const cutlass::Array<Element, Size>&>(residual);
            const auto wide = cutlass::NumericArrayConverter<float, Element, Size>::convert(added);
            const auto both = cutlass::plus<cutlass::Array<float, Size>>{}(sums, wide);
            const auto narrow = cutlass::NumericArrayConverter<Element, float, Size>::convert(both);
            return reinterpret_cast<const cutlass::Array<Either, Size>&>(narrow);
        }

        template <class Accumulator, int Size>
        CUTLASS_DEVICE auto visit(const cutlass::Array<Accumulator, Size>&, int, int, int,
                                  const cutlass::Array<float, Size>& sums,
                                  const cutlass::Array<Either, Size>& residual) {
            return half ? rounded<cutlass::half_t>(sums, residual)
                        : rounded<cutlass::bfloat16_t>(sums, residual);
        }
    };

    template <bool ReferenceSource, class... Args>
    CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::detail::ConsumerStoreArgs<Args...>&) {
        return Callbacks(set);
    }
};

template <class Tile>
using TokenScale = fusion::Sm90RowBroadcast<0, Tile, float, float, cute::Stride<cute::_0, cute::_1, cute::_0>,
                                            /*Alignment=*/1>;

template <class Tile>
using ScaledSum = fusion::Sm90EVT<
    Compute<cutlass::homogeneous_multiply_add, float>, OfOutputs<float, Tile>,
    fusion::Sm90EVT<Compute<cutlass::multiplies, float>, TokenScale<Tile>, fusion::Sm90AccFetch>,
    OfOutputs<float, Tile>>;

template <class Tile>
using ScaledEpilogue = fusion::Sm90EVT<AddAndRound,
                                       fusion::Sm90EVT<Compute<Activate, float>, ScaledSum<Tile>>, Residual>;

template <class Element, class Tile>
using EpilogueOf =
    cute::conditional_t<sizeof(Element) == 1, ScaledEpilogue<Tile>, Epilogue<Element, Tile>>;

}  // namespace vlprune::sm90

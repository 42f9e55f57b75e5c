// What a linear24_sm90_<name>.cu consists of: its shape and schedule, made an Instance.
#pragma once
#include <type_traits>

#include "cuda/linear24_sm90.h"
#include "cuda/linear24_sm90_launch.cuh"

namespace vlprune::sm90 {

#if defined(VLPRUNE_SM90_F16)
constexpr DType dtype = DType::f16;
using Element = cutlass::half_t;
#else
constexpr DType dtype = DType::bf16;
using Element = cutlass::bfloat16_t;
#endif

// Of this file alone: compiled for the other dtype it has the same name.
template <class Shape, class Schedule>
static Instance instance(const char* name) {
    using Kernel = typename Linear24<Element, Shape, Schedule>::Kernel;
    using Tile = typename Shape::Tile;
    constexpr int out = cute::size<0>(Tile{}), tokens = cute::size<1>(Tile{});
    constexpr int stages = Kernel::CollectiveMainloop::DispatchPolicy::Stages;
    constexpr int split = splits_in<Kernel> ? 0 : 1;
    return {{name, out, tokens, tile_in, stages, split}, workspace<Kernel>, run<Kernel>};
}

}  // namespace vlprune::sm90

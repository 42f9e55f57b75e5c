// What a linear24_sm90_<name>.cu consists of: its shape and schedule, made an Instance.
#pragma once
#include <type_traits>

#include "cuda/linear24_sm90.h"
#include "cuda/linear24_sm90_launch.cuh"

namespace vlprune::sm90 {

#if !defined(VLPRUNE_SM90_DTYPE)
#define VLPRUNE_SM90_DTYPE bf16
#endif
constexpr DType dtype = DType::VLPRUNE_SM90_DTYPE;

template <DType>
struct ElementOf;
template <>
struct ElementOf<DType::bf16> {
    using type = cutlass::bfloat16_t;
};
template <>
struct ElementOf<DType::f16> {
    using type = cutlass::half_t;
};
template <>
struct ElementOf<DType::s8> {
    using type = int8_t;
};
template <>
struct ElementOf<DType::e4m3> {
    using type = cutlass::float_e4m3_t;
};

// Of this file alone: compiled for another dtype it has the same name.
template <class Shape, class Schedule>
static Instance instance(const char* name) {
    using Kernel = typename Linear24<typename ElementOf<dtype>::type, Shape, Schedule>::Kernel;
    using Tile = typename Kernel::TileShape;
    constexpr int out = cute::size<0>(Tile{}), tokens = cute::size<1>(Tile{}), in = cute::size<2>(Tile{});
    constexpr int stages = Kernel::CollectiveMainloop::DispatchPolicy::Stages;
    constexpr int split = splits_in<Kernel> ? 0 : 1;
    return {{name, out, tokens, in, stages, split}, workspace<Kernel>, run<Kernel>};
}

}  // namespace vlprune::sm90

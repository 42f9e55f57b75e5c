// The compiled configs, each for one dtype, as linear24_sm90.cpp lists them.
#pragma once
#include "cuda/linear24.h"

namespace vlprune::sm90 {

struct Instance {
    ConfigInfo info;
    size_t (*workspace)(const Linear24Call&);
    int (*run)(const Linear24Call&);
};

// Each has a file of its own, linear24_sm90_<name>.cu, which is compiled once a dtype. These are for all:
template <DType>
Instance cooperative_128x192();
template <DType>
Instance ping_pong_128x128();
template <DType>
Instance ping_pong_64x64();
template <DType>
Instance split_128x32();

// And these for 16 bits alone: of 8, whose indices take twice the room, 256x128 has two stages.
template <DType>
Instance cooperative_256x128();
template <DType>
Instance ping_pong_64x128();
template <DType>
Instance ping_pong_64x32();
template <DType>
Instance split_128x128();
template <DType>
Instance split_128x64();

}  // namespace vlprune::sm90

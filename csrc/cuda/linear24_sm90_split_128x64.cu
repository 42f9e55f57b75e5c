#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance split_128x64<dtype>() {
    return instance<Shape<128, 64, 1, 16>, CooperativeSplit>("split 128x64");
}

}  // namespace vlprune::sm90

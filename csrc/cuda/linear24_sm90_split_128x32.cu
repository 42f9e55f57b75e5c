#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance split_128x32<dtype>() {
    return instance<Shape<128, 32>, CooperativeSplit>("split 128x32");
}

}  // namespace vlprune::sm90

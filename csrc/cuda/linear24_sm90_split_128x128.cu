#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance split_128x128<dtype>() {
    return instance<Shape<128, 128, 1, 16>, CooperativeSplit>("split 128x128");
}

}  // namespace vlprune::sm90

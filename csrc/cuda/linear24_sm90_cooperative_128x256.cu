#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance cooperative_128x256<dtype>() {
    return instance<Shape<128, 256, 2>, Cooperative>("cooperative 128x256");
}

}  // namespace vlprune::sm90

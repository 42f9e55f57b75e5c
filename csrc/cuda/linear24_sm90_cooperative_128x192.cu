#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance cooperative_128x192<dtype>() {
    return instance<Shape<128, 192, 2, 16>, Cooperative>("cooperative 128x192");
}

}  // namespace vlprune::sm90

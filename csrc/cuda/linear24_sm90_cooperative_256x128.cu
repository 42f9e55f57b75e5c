#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance cooperative_256x128<dtype>() {
    return instance<Shape<256, 128, 2, 16>, Cooperative>("cooperative 256x128");
}

}  // namespace vlprune::sm90

#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance ping_pong_64x32<dtype>() {
    return instance<Shape<64, 32>, PingPong>("ping-pong 64x32");
}

}  // namespace vlprune::sm90

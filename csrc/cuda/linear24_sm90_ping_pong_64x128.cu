#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance ping_pong_64x128<dtype>() {
    return instance<Shape<64, 128>, PingPong>("ping-pong 64x128");
}

}  // namespace vlprune::sm90

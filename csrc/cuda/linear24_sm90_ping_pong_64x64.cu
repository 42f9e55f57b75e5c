#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance ping_pong_64x64<dtype>() {
    return instance<Shape<64, 64>, PingPong>("ping-pong 64x64");
}

}  // namespace vlprune::sm90

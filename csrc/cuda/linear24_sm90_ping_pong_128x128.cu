#include "cuda/linear24_sm90_instance.cuh"

namespace vlprune::sm90 {

template <>
Instance ping_pong_128x128<dtype>() {
    return instance<Shape<128, 128, 2>, PingPong>("ping-pong 128x128");
}

}  // namespace vlprune::sm90

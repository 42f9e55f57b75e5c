#include "linear24_schemes.h"
#include "vec_avx2.h"

namespace vlprune {

const Linear24Variant linear24_avx2_f32 = variant_of<Vec, float>;
const Linear24Variant linear24_avx2_bf16 = variant_of<Vec, uint16_t>;

}  // namespace vlprune

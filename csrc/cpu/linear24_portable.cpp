#include "linear24_schemes.h"
#include "vec_portable.h"

namespace vlprune {

const Linear24Variant linear24_portable_f32 = variant_of<Vec, float>;
const Linear24Variant linear24_portable_bf16 = variant_of<Vec, uint16_t>;

}  // namespace vlprune

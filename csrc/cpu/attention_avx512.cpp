#include "attention_heads.h"
#include "vec_avx512.h"

namespace vlprune {

const AttentionVariant attention_avx512 = {Heads<Vec, float>::run, Heads<Vec, uint16_t>::run};

}  // namespace vlprune

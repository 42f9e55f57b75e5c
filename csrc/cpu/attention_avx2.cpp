#include "attention_heads.h"
#include "vec_avx2.h"

namespace vlprune {

const AttentionVariant attention_avx2 = {Heads<Vec, float>::run, Heads<Vec, uint16_t>::run};

}  // namespace vlprune

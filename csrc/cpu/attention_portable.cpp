#include "attention_heads.h"
#include "vec_portable.h"

namespace vlprune {

const AttentionVariant attention_portable = {Heads<Vec, float>::run, Heads<Vec, uint16_t>::run};

}  // namespace vlprune

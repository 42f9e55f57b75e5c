#include "attention_heads.h"
#include "vec_avx2.h"

namespace vlprune {

const AttentionVariant attention_avx2 = Heads<Vec>::run;

}  // namespace vlprune

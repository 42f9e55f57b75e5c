#include "attention_heads.h"
#include "vec_portable.h"

namespace vlprune {

const AttentionVariant attention_portable = Heads<Vec>::run;

}  // namespace vlprune

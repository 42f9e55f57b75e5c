#include "masked_update_gradient.h"
#include "vec_portable.h"

namespace vlprune {
namespace {

struct Lanes : Vec {
    static reg keep(reg x, const uint8_t* bytes) {
        return each([&](int i) { return bytes[i] != 0 ? x.v[i] : 0.0f; });
    }
};

}  // namespace

const MaskedUpdateVariant masked_update_portable = masked_update_by<Lanes>;

}  // namespace vlprune

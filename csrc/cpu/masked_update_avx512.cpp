#include "masked_update_gradient.h"
#include "vec_avx512.h"

namespace vlprune {
namespace {

struct Lanes : Vec {
    static reg keep(reg x, const uint8_t* bytes) {
        const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
        return _mm512_maskz_mov_ps(_mm_cmpneq_epi8_mask(some, _mm_setzero_si128()), x);
    }
};

}  // namespace

const MaskedUpdateVariant masked_update_avx512 = masked_update_by<Lanes>;

}  // namespace vlprune

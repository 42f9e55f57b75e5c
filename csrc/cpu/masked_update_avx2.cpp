#include "masked_update_gradient.h"
#include "vec_avx2.h"

namespace vlprune {
namespace {

struct Lanes : Vec {
    static reg keep(reg x, const uint8_t* bytes) {
        const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
        return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_setzero_si256())));
    }
};

}  // namespace

const MaskedUpdateVariant masked_update_avx2 = masked_update_by<Lanes>;

}  // namespace vlprune

// pack24's indices in the order of mma.sp; see linear24_sm80_meta.h.
#include "cuda/linear24_sm80_meta.h"

#include <cstring>

#include "cuda/linear24_meta.h"

namespace vlprune {

// Indices 0 and 1 in each group: what is beyond the weight is zero, but has to ascend as all indices do.
constexpr int ascending = 0x44;

int64_t sm80_meta_bytes(int64_t out, int64_t in) {
    return sm80::meta_blocks(out) * sm80::meta_blocks(in) * sm80::meta_block_bytes;
}

void sm80_reorder_meta(const uint8_t* meta, int64_t out, int64_t in, uint8_t* to) {
    const int64_t row_bytes = (in + 7) / 8, blocks = sm80::meta_blocks(in);
    std::memset(to, ascending, static_cast<size_t>(sm80_meta_bytes(out, in)));
    for (int64_t row = 0; row < out; ++row) {
        for (int64_t byte = 0; byte < row_bytes; ++byte) {
            // A byte holds the indices of 8 inputs, two bytes those of the 16 that one place takes.
            const int64_t block = row / sm80::meta_block_out * blocks + byte / 4;
            const int place = sm80::meta_place(static_cast<int>(row % sm80::meta_block_out),
                                               static_cast<int>(byte / 2 % 2));
            const bool half_a_byte = 8 * byte + 4 >= in;
            const int indices = half_a_byte ? (meta[row * row_bytes + byte] & 15) | (ascending & 0xf0)
                                            : meta[row * row_bytes + byte];
            to[block * sm80::meta_block_bytes + 2 * place + byte % 2] = static_cast<uint8_t>(indices);
        }
    }
}

}  // namespace vlprune

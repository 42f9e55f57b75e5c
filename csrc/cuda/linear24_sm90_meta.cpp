// The order of wgmma.sp's metadata, as CUTLASS's sm90 main loop copies it to shared memory.
//
// The matrix is cut into blocks of 64 outputs x 128 inputs, stored one after the other, first along the
// outputs. Inside a block the unit is a word of 16 bits: the indices of 16 consecutive inputs of one output,
// with the bits where pack24 has them. For weights of 8 bits the words of an output follow each other, and
// the outputs too. For those of 16 bits a word's place has, from the lowest digit up: which half of 16 outputs
// (2), which 32 of the 128 inputs (4), the output within the half (8), which half of 32 inputs (2), which 16
// of the 64 outputs (4). So a thread finds the words of its two rows and four instructions in 16 bytes.
//
// The main loop goes in tiles of 256 inputs where these have 8 bits, so there are blocks for all of the last.
#include <cstring>

#include "cuda/linear24_meta.h"

namespace vlprune {

namespace {

constexpr int64_t block_out = 64, block_in = 128, word_in = 16, scaled_tile_in = 256;
constexpr int64_t block_bytes = block_out * block_in / 8;
// Two kept inputs in ascending order: the hardware asks that of padding too.
constexpr uint8_t indices_0_1 = 0x44;

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

int64_t word_place(int64_t row, int64_t word) {
    return row / 8 % 2 + 2 * (word / 2) + 8 * (row % 8) + 64 * (word % 2) + 128 * (row / 16);
}

int64_t scaled_word_place(int64_t row, int64_t word) { return block_in / word_in * row + word; }

template <class Place>
void reorder(const uint8_t* meta, int64_t out, int64_t in, uint8_t* to, int64_t bytes, Place place_of) {
    const int64_t row_bytes = (in + 7) / 8, row_blocks = blocks(out, block_out);
    std::memset(to, indices_0_1, static_cast<size_t>(bytes));
    for (int64_t row = 0; row < out; ++row) {
        for (int64_t byte = 0; byte < row_bytes; ++byte) {
            const int64_t input = 8 * byte, block = input / block_in * row_blocks + row / block_out;
            const int64_t place = place_of(row % block_out, input % block_in / word_in);
            uint8_t indices = meta[row * row_bytes + byte];
            if (input + 4 >= in) indices = static_cast<uint8_t>((indices & 0x0f) | (indices_0_1 & 0xf0));
            to[block * block_bytes + 2 * place + byte % 2] = indices;
        }
    }
}

}  // namespace

int64_t sm90_meta_bytes(int64_t out, int64_t in) {
    return blocks(out, block_out) * blocks(in, block_in) * block_bytes;
}

void sm90_reorder_meta(const uint8_t* meta, int64_t out, int64_t in, uint8_t* to) {
    reorder(meta, out, in, to, sm90_meta_bytes(out, in), word_place);
}

int64_t sm90_scaled_meta_bytes(int64_t out, int64_t in) {
    return sm90_meta_bytes(out, blocks(in, scaled_tile_in) * scaled_tile_in);
}

void sm90_scaled_reorder_meta(const uint8_t* meta, int64_t out, int64_t in, uint8_t* to) {
    reorder(meta, out, in, to, sm90_scaled_meta_bytes(out, in), scaled_word_place);
}

}  // namespace vlprune

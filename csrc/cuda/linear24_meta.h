// The packed weight's indices in the order in which an architecture's tensor cores take them.
// Host code without CUDA: done once, when a weight is loaded.
#pragma once
#include <cstdint>

namespace vlprune {

// From meta [out, ceil(in/8)] as pack24 writes it; `to` has smXX_meta_bytes(out, in) bytes, all written.
int64_t sm90_meta_bytes(int64_t out, int64_t in);
void sm90_reorder_meta(const uint8_t* meta, int64_t out, int64_t in, uint8_t* to);

// For weights of 8 bits.
int64_t sm90_scaled_meta_bytes(int64_t out, int64_t in);
void sm90_scaled_reorder_meta(const uint8_t* meta, int64_t out, int64_t in, uint8_t* to);

int64_t sm80_meta_bytes(int64_t out, int64_t in);
void sm80_reorder_meta(const uint8_t* meta, int64_t out, int64_t in, uint8_t* to);

}  // namespace vlprune

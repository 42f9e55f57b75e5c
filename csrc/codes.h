// The numbers by which Python names dtypes and activations, on every backend.
#pragma once

namespace vlprune {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, s8 = 3, e4m3 = 4 };
enum class Activation : int { none = 0, gelu = 1, quick_gelu = 2 };

}  // namespace vlprune

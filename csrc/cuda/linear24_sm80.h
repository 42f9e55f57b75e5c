// What nvcc compiles of linear24_sm80, in linear24_sm80.cu, for the host's part of it.
#pragma once
#include "cuda/linear24.h"
#include "cuda/linear24_sm80_problem.h"

namespace vlprune::sm80 {

// Starts one block for each tile and part; `tile` is a position in with_tile.
cudaError_t launch(int tile, DType dtype, const Problem& problem, cudaStream_t stream);

}  // namespace vlprune::sm80

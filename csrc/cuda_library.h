// The library of CUDA kernels, which is built and loaded apart from this module: it needs nvcc, and this does not.
#pragma once

#include <string>

#include "kernels/cuda_kernels.h"

namespace megatron {

// Throws std::runtime_error where the file is no library of this version of the kernels.
void load_cuda_kernels(const std::string& path);

// Throws std::runtime_error where none is loaded.
const CudaKernels& cuda_kernels();

// Throws std::runtime_error for what a launcher returned, unless it is 0.
void check_launch(int code);

}  // namespace megatron

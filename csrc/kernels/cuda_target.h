// Where the kernels are compiled for: CUDA, or, for tests without a GPU, a CPU on which tests/ops/emulated_cuda.h
// has the threads of a block take turns.
#pragma once

#ifdef MEGATRON_EMULATED_CUDA
#include "emulated_cuda.h"
#else
#include <cuda_runtime.h>
#endif

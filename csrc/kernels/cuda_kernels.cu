#include "cuda_kernels.h"

#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

const char* message(int code) {
    if (code == kTooManyColumns) return "a row has more columns than a block of threads keeps (8192)";
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

int usable() {
    int devices;
    return static_cast<int>(cudaGetDeviceCount(&devices));
}

template <typename T>
constexpr CudaRows<T> rows() {
    return {cuda_dropout<T>,
            cuda_add_norm<T>,
            cuda_add_norm_gradients<T>,
            cuda_bias_activation<T>,
            cuda_bias_activation_gradients<T>,
            cuda_cross_entropy<T>,
            cuda_cross_entropy_gradients<T>,
            cuda_softmax<T>,
            cuda_softmax_gradients<T>,
            cuda_add_rows<T>};
}

constexpr CudaKernels kKernels = {kCudaKernelsVersion, usable,     message,            rows<float>(),
                                  rows<BFloat16>(),    cuda_adamw, cuda_sum_of_squares};

}  // namespace
}  // namespace megatron

extern "C" const megatron::CudaKernels* megatron_cuda_kernels() { return &megatron::kKernels; }

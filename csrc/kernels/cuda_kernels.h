// The fused operations on a GPU, as a table of functions that megatron._C finds in the library of kernels. They start
// on `stream` and return 0, a cudaError_t, or one of the library's own codes below 0, which `message` explains.
#pragma once

#include <algorithm>

#include "accumulate.h"
#include "adamw.h"
#include "add_norm.h"
#include "bias_activation.h"
#include "cross_entropy.h"
#include "dropout.h"
#include "softmax.h"

namespace megatron {

// Sums over rows are taken in parts, a block each: enough blocks to keep a GPU busy, few enough that their sums are little
// beside the rows. The number depends on shapes alone, so that results are the same whatever GPU it is.
constexpr int64_t kFewestParts = 132, kMostParts = 1056;

inline int64_t parts_of(int64_t rows, int64_t columns) {
    return std::min(rows, std::clamp<int64_t>(kMostParts * 1024 / columns, kFewestParts, kMostParts));
}

constexpr int kSlots = 8;           // values of a row that a thread keeps in registers
constexpr int kMostThreads = 1024;  // of a block
constexpr int64_t kMostColumns = int64_t{kMostThreads} * kSlots;  // of a row that is kept in registers: LayerNorm, softmax

// workspace: fp32 [parts_of(rows, columns), sums, columns], where sums over rows are needed.
template <typename T>
struct CudaRows {
    int (*dropout)(const Dropout<T>&, void* stream);
    int (*add_norm)(const AddNorm<T>&, void* stream);
    int (*add_norm_gradients)(const AddNormGradients<T>&, const ColumnSums&, float* workspace, void* stream);  // 3 sums
    int (*bias_activation)(const BiasActivation<T>&, Activation, void* stream);
    int (*bias_activation_gradients)(const BiasActivationGradients<T>&, Activation, float* of_bias, float* workspace,
                                     void* stream);
    int (*cross_entropy)(const CrossEntropy<T>&, const RowStatistics&, void* stream);
    int (*cross_entropy_gradients)(const CrossEntropy<T>&, const RowGradients& given,
                                   float* of_bias, float* workspace, void* stream);
    int (*softmax)(const Softmax<T>&, void* stream);
    int (*softmax_gradients)(const SoftmaxGradients<T>&, void* stream);
    int (*add_rows)(float* into, const T* x, int64_t rows, int64_t columns, float* workspace, void* stream);
};

struct CudaKernels {
    int version;
    int (*usable)();  // 0 if the driver takes what the library was built with
    const char* (*message)(int code);
    CudaRows<float> in_float;
    CudaRows<BFloat16> in_bfloat16;
    int (*adamw)(const AdamW&, void* stream);
    // total: one fp64 on the device; workspace: fp64 [kMostParts].
    int (*sum_of_squares)(const float* x, int64_t count, double* workspace, double* total, void* stream);
};

constexpr int kCudaKernelsVersion = 2;  // of these structures: the library and the module are built from the same ones

}  // namespace megatron

extern "C" __attribute__((visibility("default"))) const megatron::CudaKernels* megatron_cuda_kernels();

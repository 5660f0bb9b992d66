// The launchers of the kernels, each beside its kernels; cuda_kernels.cu makes the table of them.
#pragma once

#include "cuda_kernels.h"

namespace megatron {

template <typename T>
int cuda_dropout(const Dropout<T>& a, void* stream);
template <typename T>
int cuda_add_norm(const AddNorm<T>& a, void* stream);
template <typename T>
int cuda_add_norm_gradients(const AddNormGradients<T>& a, const ColumnSums& sums, float* workspace, void* stream);
template <typename T>
int cuda_bias_activation(const BiasActivation<T>& a, Activation activation, void* stream);
template <typename T>
int cuda_bias_activation_gradients(const BiasActivationGradients<T>& a, Activation activation, float* of_bias,
                                   float* workspace, void* stream);
template <typename T>
int cuda_cross_entropy(const CrossEntropy<T>& a, const RowStatistics& out, void* stream);
template <typename T>
int cuda_cross_entropy_gradients(const CrossEntropy<T>& a, const RowGradients& given,
                                 float* of_bias, float* workspace, void* stream);
template <typename T>
int cuda_softmax(const Softmax<T>& a, void* stream);
template <typename T>
int cuda_softmax_gradients(const SoftmaxGradients<T>& a, void* stream);
template <typename T>
int cuda_add_rows(float* into, const T* x, int64_t rows, int64_t columns, float* workspace, void* stream);
int cuda_adamw(const AdamW& a, void* stream);
int cuda_sum_of_squares(const float* x, int64_t count, double* workspace, double* total, void* stream);

}  // namespace megatron

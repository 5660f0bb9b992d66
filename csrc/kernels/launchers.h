// The fused operations on a CPU: rows of the headers divided among `threads` threads. Gradients of parameters are added
// to what stands in their fp32 arrays.
#pragma once

#include "accumulate.h"
#include "adamw.h"
#include "add_norm.h"
#include "bias_activation.h"
#include "cross_entropy.h"
#include "dropout.h"
#include "embedding.h"
#include "softmax.h"

namespace megatron {

void dropout(const Dropout<float>& a, int threads);
void dropout(const Dropout<BFloat16>& a, int threads);

void embedding(const Embedding<float>& a, int threads);
void embedding(const Embedding<BFloat16>& a, int threads);
void embedding_gradients(const EmbeddingGradients<float>& a, int threads);
void embedding_gradients(const EmbeddingGradients<BFloat16>& a, int threads);

void add_norm(const AddNorm<float>& a, int threads);
void add_norm(const AddNorm<BFloat16>& a, int threads);
void add_norm_gradients(const AddNormGradients<float>& a, const ColumnSums& sums, int threads);
void add_norm_gradients(const AddNormGradients<BFloat16>& a, const ColumnSums& sums, int threads);

void bias_activation(const BiasActivation<float>& a, Activation kind, int threads);
void bias_activation(const BiasActivation<BFloat16>& a, Activation kind, int threads);
void bias_activation_gradients(const BiasActivationGradients<float>& a, Activation kind, float* of_bias, int threads);
void bias_activation_gradients(const BiasActivationGradients<BFloat16>& a, Activation kind, float* of_bias,
                               int threads);

// Fills the statistics of every row.
void cross_entropy(const CrossEntropy<float>& a, const RowStatistics& out, int threads);
void cross_entropy(const CrossEntropy<BFloat16>& a, const RowStatistics& out, int threads);
void cross_entropy_gradients(const CrossEntropy<float>& a, const RowGradients& given, float* of_bias,
                             int threads);
void cross_entropy_gradients(const CrossEntropy<BFloat16>& a, const RowGradients& given,
                             float* of_bias, int threads);

void softmax(const Softmax<float>& a, int threads);
void softmax(const Softmax<BFloat16>& a, int threads);
void softmax_gradients(const SoftmaxGradients<float>& a, int threads);
void softmax_gradients(const SoftmaxGradients<BFloat16>& a, int threads);

// into [columns] += the sum of the rows of x [rows, columns]; of one row for what has the same shape.
void add_rows(float* into, const float* x, int64_t rows, int64_t columns, int threads);
void add_rows(float* into, const BFloat16* x, int64_t rows, int64_t columns, int threads);

void adamw(const AdamW& a, int threads);
double sum_of_squares(const float* x, int64_t count, int threads);

}  // namespace megatron

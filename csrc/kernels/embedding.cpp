#include "embedding.h"

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

template <typename T>
MEGATRON_HD void forward_rows(const Embedding<T>& a, int64_t first, int64_t last, float* values) {
    for (int64_t row = first; row < last; ++row) embedding_row(SerialLanes(), a, row, values);
}

template <typename T>
MEGATRON_HD void backward_columns(const EmbeddingGradients<T>& a, int64_t first, int64_t last) {
    for (int64_t row = 0; row < a.rows; ++row) embedding_gradient_row(SerialLanes(), a, row, first, last);
}

MEGATRON_CLONES void forward_part(const Embedding<float>& a, int64_t first, int64_t last, float* values) {
    forward_rows(a, first, last, values);
}

MEGATRON_CLONES void forward_part(const Embedding<BFloat16>& a, int64_t first, int64_t last, float* values) {
    forward_rows(a, first, last, values);
}

MEGATRON_CLONES void backward_part(const EmbeddingGradients<float>& a, int64_t first, int64_t last) {
    backward_columns(a, first, last);
}

MEGATRON_CLONES void backward_part(const EmbeddingGradients<BFloat16>& a, int64_t first, int64_t last) {
    backward_columns(a, first, last);
}

template <typename T>
void forward(const Embedding<T>& a, int threads) {
    float* values = scratch(static_cast<size_t>(threads * a.columns));
    over_parts(a.rows, threads, [&](int64_t first, int64_t last, int thread) {
        forward_part(a, first, last, values + thread * a.columns);
    });
}

template <typename T>
void backward(const EmbeddingGradients<T>& a, int threads) {
    over_parts(a.columns, threads, [&](int64_t first, int64_t last, int) { backward_part(a, first, last); });
}

}  // namespace

void embedding(const Embedding<float>& a, int threads) { forward(a, threads); }
void embedding(const Embedding<BFloat16>& a, int threads) { forward(a, threads); }
void embedding_gradients(const EmbeddingGradients<float>& a, int threads) { backward(a, threads); }
void embedding_gradients(const EmbeddingGradients<BFloat16>& a, int threads) { backward(a, threads); }

}  // namespace megatron

#include "bias_activation.h"

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

template <Activation kind, typename T>
MEGATRON_HD void forward_rows(const BiasActivation<T>& a, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) bias_activation_row<kind>(SerialLanes(), a, row);
}

template <Activation kind, typename T>
MEGATRON_HD void backward_rows(const BiasActivationGradients<T>& a, int64_t first, int64_t last, float* of_bias) {
    for (int64_t row = first; row < last; ++row) bias_activation_gradient_row<kind>(SerialLanes(), a, row, of_bias);
}

template <typename T>
MEGATRON_HD void forward_kind(const BiasActivation<T>& a, Activation kind, int64_t first, int64_t last) {
    if (kind == Activation::gelu) forward_rows<Activation::gelu>(a, first, last);
    if (kind == Activation::gelu_tanh) forward_rows<Activation::gelu_tanh>(a, first, last);
    if (kind == Activation::relu) forward_rows<Activation::relu>(a, first, last);
}

template <typename T>
MEGATRON_HD void backward_kind(const BiasActivationGradients<T>& a, Activation kind, int64_t first, int64_t last,
                               float* of_bias) {
    if (kind == Activation::gelu) backward_rows<Activation::gelu>(a, first, last, of_bias);
    if (kind == Activation::gelu_tanh) backward_rows<Activation::gelu_tanh>(a, first, last, of_bias);
    if (kind == Activation::relu) backward_rows<Activation::relu>(a, first, last, of_bias);
}

MEGATRON_CLONES void forward_part(const BiasActivation<float>& a, Activation kind, int64_t first, int64_t last) {
    forward_kind(a, kind, first, last);
}

MEGATRON_CLONES void forward_part(const BiasActivation<BFloat16>& a, Activation kind, int64_t first, int64_t last) {
    forward_kind(a, kind, first, last);
}

MEGATRON_CLONES void backward_part(const BiasActivationGradients<float>& a, Activation kind, int64_t first,
                                   int64_t last, float* of_bias) {
    backward_kind(a, kind, first, last, of_bias);
}

MEGATRON_CLONES void backward_part(const BiasActivationGradients<BFloat16>& a, Activation kind, int64_t first,
                                   int64_t last, float* of_bias) {
    backward_kind(a, kind, first, last, of_bias);
}

template <typename T>
void forward(const BiasActivation<T>& a, Activation kind, int threads) {
    over_parts(a.rows, threads, [&](int64_t first, int64_t last, int) { forward_part(a, kind, first, last); });
}

template <typename T>
void backward(const BiasActivationGradients<T>& a, Activation kind, float* of_bias, int threads) {
    sum_over_rows(a.rows, a.columns, 0, threads, {of_bias}, [&](int64_t first, int64_t last, float* sums, float*) {
        backward_part(a, kind, first, last, sums);
    });
}

}  // namespace

void bias_activation(const BiasActivation<float>& a, Activation kind, int threads) { forward(a, kind, threads); }
void bias_activation(const BiasActivation<BFloat16>& a, Activation kind, int threads) { forward(a, kind, threads); }

void bias_activation_gradients(const BiasActivationGradients<float>& a, Activation kind, float* of_bias, int threads) {
    backward(a, kind, of_bias, threads);
}

void bias_activation_gradients(const BiasActivationGradients<BFloat16>& a, Activation kind, float* of_bias,
                               int threads) {
    backward(a, kind, of_bias, threads);
}

}  // namespace megatron

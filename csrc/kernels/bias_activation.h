// Rows of activation(x + bias).
#pragma once

#include "numeric.h"
#include "portable.h"

namespace megatron {

template <typename T>
struct BiasActivation {
    int64_t rows, columns;
    const T *x, *bias;
    T* y;
};

template <typename T>
struct BiasActivationGradients {
    int64_t rows, columns;
    const T *of_y, *x, *bias;
    T* of_x;
};

template <Activation kind, typename Lanes, typename T>
MEGATRON_HD void bias_activation_row(const Lanes& lanes, const BiasActivation<T>& a, int64_t row) {
    const int64_t start = row * a.columns;
    lanes.map(
        a.columns, a.y + start, [&](int64_t, int64_t, float x, float bias) { return activated<kind>(x + bias); },
        a.x + start, a.bias);
}

// of_bias: sums over rows of one thread's part, fp32 [columns].
template <Activation kind, typename Lanes, typename T>
MEGATRON_HD void bias_activation_gradient_row(const Lanes& lanes, const BiasActivationGradients<T>& a, int64_t row,
                                              float* of_bias) {
    const int64_t start = row * a.columns;
    lanes.map(
        a.columns, a.of_x + start,
        [&](int64_t, int64_t slot, float of_y, float x, float bias) {
            const float g = of_y * activated_slope<kind>(x + bias);
            of_bias[slot] += g;
            return g;
        },
        a.of_y + start, a.x + start, a.bias);
}

}  // namespace megatron

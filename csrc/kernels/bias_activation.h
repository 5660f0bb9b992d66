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
    const T *x = a.x + row * a.columns, *bias = a.bias;
    T* y = a.y + row * a.columns;
    lanes.each(a.columns, [&](int64_t c, int64_t) {
        y[c] = from_float<T>(activated<kind>(to_float(x[c]) + to_float(bias[c])));
    });
}

// of_bias: sums over rows of one thread's part, fp32 [columns].
template <Activation kind, typename Lanes, typename T>
MEGATRON_HD void bias_activation_gradient_row(const Lanes& lanes, const BiasActivationGradients<T>& a, int64_t row,
                                              float* of_bias) {
    const int64_t start = row * a.columns;
    const T *of_y = a.of_y + start, *x = a.x + start, *bias = a.bias;
    T* of_x = a.of_x + start;
    lanes.each(a.columns, [&](int64_t c, int64_t slot) {
        const float g = to_float(of_y[c]) * activated_slope<kind>(to_float(x[c]) + to_float(bias[c]));
        of_bias[slot] += g;
        of_x[c] = from_float<T>(g);
    });
}

}  // namespace megatron

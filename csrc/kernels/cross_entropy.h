// Rows of cross-entropy over one rank's columns of the vocabulary. The gradient takes the place of the logits.
#pragma once

#include <cmath>

#include "numeric.h"
#include "portable.h"

namespace megatron {

// columns: of a row in memory; those from `valid` on are padding of the vocabulary. start: the first column's place in
// the vocabulary.
template <typename T>
struct CrossEntropy {
    int64_t rows, columns, valid, start;
    T* logits;
    const T* bias;
    const int64_t* labels;
};

// The largest logit of a row, the sum of exponentials relative to it, and the label's logit (0 where another rank has it).
struct RowStatistics {
    float *largest, *total, *target;  // [rows]
};

// The largest of the numbers that f returns, and the sum of their exponentials relative to it.
struct Exponentials {
    float largest, total;
};

template <typename Lanes, typename F, typename... T>
MEGATRON_HD Exponentials exponentials(const Lanes& lanes, int64_t columns, F f, const T*... x) {
    const float largest = lanes.max(columns, f, x...);
    const float total = lanes.sum(
        columns,
        [&](int64_t c, int64_t slot, auto... values) { return exponential(f(c, slot, values...) - largest); }, x...);
    return {largest, total};
}

template <typename Lanes, typename T>
MEGATRON_HD void cross_entropy_row(const Lanes& lanes, const CrossEntropy<T>& a, int64_t row, const RowStatistics& out) {
    const T* logits = a.logits + row * a.columns;
    const auto biased = [](int64_t, int64_t, float logit, float bias) { return logit + bias; };
    const Exponentials found = exponentials(lanes, a.valid, biased, logits, a.bias);
    out.largest[row] = found.largest;
    out.total[row] = found.total;
    const int64_t column = a.labels[row] - a.start;
    const bool here = column >= 0 && column < a.valid;
    out.target[row] = here ? to_float(logits[column]) + to_float(a.bias[column]) : 0.0f;
}

// Of each row: the two statistics over the whole vocabulary, and the gradient of its loss.
struct RowGradients {
    const float *largest, *total, *factor;  // [rows]
};

// logits become gradients: (softmax - label) * factor; 0 in the padding.
template <typename Lanes, typename T>
MEGATRON_HD void cross_entropy_gradient_row(const Lanes& lanes, const CrossEntropy<T>& a, int64_t row,
                                            const RowGradients& given, float* of_bias) {
    T* logits = a.logits + row * a.columns;
    const float largest = given.largest[row], factor = given.factor[row], times = factor / given.total[row];
    const int64_t label = a.labels[row] - a.start, valid = a.valid;
    lanes.map(
        a.columns, logits,
        [&](int64_t c, int64_t slot, float logit, float bias) {
            const float p = exponential(logit + bias - largest) * times;
            const float g = c < valid ? (c == label ? p - factor : p) : 0.0f;
            of_bias[slot] += g;
            return g;
        },
        logits, a.bias);
}

}  // namespace megatron

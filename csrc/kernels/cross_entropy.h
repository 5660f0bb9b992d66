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

template <typename Lanes, typename T>
MEGATRON_HD void cross_entropy_row(const Lanes& lanes, const CrossEntropy<T>& a, int64_t row, const RowStatistics& out) {
    const T *logits = a.logits + row * a.columns, *bias = a.bias;
    const float largest =
        lanes.max(a.valid, [&](int64_t c, int64_t) { return to_float(logits[c]) + to_float(bias[c]); });
    out.total[row] = lanes.sum(a.valid, [&](int64_t c, int64_t) {
        return exponential(to_float(logits[c]) + to_float(bias[c]) - largest);
    });
    out.largest[row] = largest;
    const int64_t column = a.labels[row] - a.start;
    const bool here = column >= 0 && column < a.valid;
    out.target[row] = here ? to_float(logits[column]) + to_float(bias[column]) : 0.0f;
}

// logits become gradients: (softmax - label) * factor. normalizer: logarithm of the sum of exponentials, [rows].
template <typename Lanes, typename T>
MEGATRON_HD void cross_entropy_gradient_row(const Lanes& lanes, const CrossEntropy<T>& a, int64_t row,
                                            const float* normalizer, const float* factor, float* of_bias) {
    T* logits = a.logits + row * a.columns;
    const T* bias = a.bias;
    const float normal = normalizer[row], times = factor[row];
    const int64_t label = a.labels[row] - a.start;
    lanes.each(a.valid, [&](int64_t c, int64_t slot) {
        const float p = exponential(to_float(logits[c]) + to_float(bias[c]) - normal) * times;
        const float g = c == label ? p - times : p;
        of_bias[slot] += g;
        logits[c] = from_float<T>(g);
    });
    for (int64_t c = a.valid; c < a.columns; ++c) logits[c] = from_float<T>(0.0f);
}

}  // namespace megatron

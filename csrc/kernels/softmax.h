// Rows of attention probabilities: softmax over the tokens of a sample, and dropout.
#pragma once

#include <cmath>

#include "keep.h"
#include "numeric.h"
#include "portable.h"

namespace megatron {

// rows: those of samples behind each other, `sample_rows` each; lengths: columns that count, one a sample, or null (all).
// The others get 0, and a sample without tokens nothing else.
template <typename T>
struct Softmax {
    int64_t rows, columns, sample_rows;
    const int64_t* lengths;
    const T* scores;
    float scale;  // of scores, before the softmax
    DropoutSite dropout;
    T *probabilities, *dropped;  // before and after dropout; dropped: null where dropout has no keys
};

// of_scores may be of_dropped. of_dropped: of the probabilities after dropout, or without any.
template <typename T>
struct SoftmaxGradients {
    int64_t rows, columns;
    const T *of_dropped, *probabilities;
    float scale;
    DropoutSite dropout;
    T* of_scores;
};

template <bool kDropout, typename Lanes, typename T>
MEGATRON_HD void softmax_row(const Lanes& lanes, const Softmax<T>& a, int64_t row, float* values) {
    const int64_t n = a.columns, start = row * n;
    const int64_t tokens = a.lengths == nullptr ? n : a.lengths[row / a.sample_rows];
    const float scale = a.scale;
    const float largest = lanes.max(
        n,
        [&](int64_t c, int64_t slot, float score) { return values[slot] = c < tokens ? score * scale : kLowest; },
        a.scores + start);
    const float total = lanes.sum(n, [&](int64_t c, int64_t slot) {
        return values[slot] = c < tokens ? exponential(values[slot] - largest) : 0.0f;
    });
    const float inverse = tokens > 0 ? 1.0f / total : 0.0f;
    lanes.map(n, a.probabilities + start, [&](int64_t, int64_t slot) { return values[slot] *= inverse; });
    if (!kDropout) return;
    const RowKey key = row_key(a.dropout, row);
    const DropoutSite site = a.dropout;
    lanes.map(n, a.dropped + start, [&](int64_t c, int64_t slot) { return kept(site, key, c, values[slot]); });
}

template <bool kDropout, typename Lanes, typename T>
MEGATRON_HD void softmax_gradient_row(const Lanes& lanes, const SoftmaxGradients<T>& a, int64_t row, float* values) {
    const int64_t n = a.columns, start = row * n;
    const RowKey key = kDropout ? row_key(a.dropout, row) : RowKey(0);
    const DropoutSite site = a.dropout;
    const float delta = lanes.sum(
        n,
        [&](int64_t c, int64_t slot, float g, float p) {
            values[slot] = kDropout ? kept(site, key, c, g) : g;
            return values[slot] * p;
        },
        a.of_dropped + start, a.probabilities + start);
    const float scale = a.scale;
    lanes.map(
        n, a.of_scores + start,
        [&](int64_t, int64_t slot, float p) { return p * (values[slot] - delta) * scale; }, a.probabilities + start);
}

}  // namespace megatron

// Rows of residual + dropout(block + bias), LayerNorm, and both in one pass.
#pragma once

#include <cmath>

#include "keep.h"
#include "portable.h"

namespace megatron {

// Null pointers leave parts out: without `block` the sum is the residual alone; without `weight` there is no LayerNorm.
template <typename T>
struct AddNorm {
    int64_t rows, columns;
    const T *block, *bias, *residual;
    const T *weight, *shift;
    float epsilon;
    DropoutSite dropout;  // no dropout where keys is null
    T *sum, *normalized;
    float *mean, *rstd;  // of each row
};

template <typename T>
struct AddNormGradients {
    int64_t rows, columns;
    const T *of_sum, *of_normalized;  // of_sum may be null: nothing but the LayerNorm used the sum
    const T *sum, *weight;
    const float *mean, *rstd;
    DropoutSite dropout;
    T *of_residual, *of_block;  // without LayerNorm of_residual is of_sum and not written; of_block null: no block
};

// Sums over rows of one thread's part, fp32 [columns].
struct ColumnSums {
    float *bias, *weight, *shift;
};

template <bool kBlock, bool kDropout, bool kNorm, typename Lanes, typename T>
MEGATRON_HD void add_norm_row(const Lanes& lanes, const AddNorm<T>& a, int64_t row, float* values) {
    const int64_t n = a.columns, start = row * n;
    const RowKey key = kDropout ? row_key(a.dropout, row) : RowKey(0);
    const uint32_t threshold = a.dropout.threshold;
    const float scale = a.dropout.scale;
    const T *block = a.block + start, *bias = a.bias, *residual = a.residual + start;
    T* sum = a.sum + start;
    lanes.each(n, [&](int64_t c, int64_t slot) {
        float z = to_float(residual[c]);
        if (kBlock) {
            const float x = to_float(block[c]) + to_float(bias[c]);
            z += kDropout ? (key.hash(static_cast<uint32_t>(c)) >= threshold ? x * scale : 0.0f) : x;
            const T rounded = from_float<T>(z);
            sum[c] = rounded;
            z = to_float(rounded);
        }
        if (kNorm) values[slot] = z;
    });
    if (!kNorm) return;
    const float inverse = 1.0f / static_cast<float>(n);
    const float mean = lanes.sum(n, [&](int64_t, int64_t slot) { return values[slot]; }) * inverse;
    const float variance = lanes.sum(n, [&](int64_t, int64_t slot) {
        const float d = values[slot] - mean;
        return d * d;
    }) * inverse;
    const float rstd = 1.0f / sqrtf(variance + a.epsilon);
    a.mean[row] = mean;
    a.rstd[row] = rstd;
    const T *weight = a.weight, *shift = a.shift;
    T* y = a.normalized + start;
    lanes.each(n, [&](int64_t c, int64_t slot) {
        y[c] = from_float<T>((values[slot] - mean) * rstd * to_float(weight[c]) + to_float(shift[c]));
    });
}

template <bool kBlock, bool kDropout, bool kNorm, typename Lanes, typename T>
MEGATRON_HD void add_norm_gradient_row(const Lanes& lanes, const AddNormGradients<T>& a, int64_t row, float* values,
                                       const ColumnSums& sums) {
    const int64_t n = a.columns, start = row * n;
    const bool carried = a.of_sum != nullptr;
    const T* of_sum = carried ? a.of_sum + start : nullptr;
    if (kNorm) {
        T* of_residual = a.of_residual + start;
        const T *dy = a.of_normalized + start, *x = a.sum + start, *weight = a.weight;
        const float mean = a.mean[row], rstd = a.rstd[row], inverse = 1.0f / static_cast<float>(n);
        float *of_weight = sums.weight, *of_shift = sums.shift;
        const float first = lanes.sum(n, [&](int64_t c, int64_t slot) {
            const float g = to_float(dy[c]);
            of_shift[slot] += g;
            const float weighted = g * to_float(weight[c]);
            values[slot] = weighted;
            return weighted;
        }) * inverse;
        const float second = lanes.sum(n, [&](int64_t c, int64_t slot) {
            const float z = (to_float(x[c]) - mean) * rstd;
            of_weight[slot] += to_float(dy[c]) * z;
            return values[slot] * z;
        }) * inverse;
        if (carried) {
            lanes.each(n, [&](int64_t c, int64_t slot) {
                const float z = (to_float(x[c]) - mean) * rstd;
                values[slot] = (values[slot] - first - z * second) * rstd + to_float(of_sum[c]);
            });
        } else {
            lanes.each(n, [&](int64_t c, int64_t slot) {
                const float z = (to_float(x[c]) - mean) * rstd;
                values[slot] = (values[slot] - first - z * second) * rstd;
            });
        }
        lanes.each(n, [&](int64_t c, int64_t slot) { of_residual[c] = from_float<T>(values[slot]); });
    } else {
        lanes.each(n, [&](int64_t c, int64_t slot) { values[slot] = to_float(of_sum[c]); });
    }
    if (!kBlock) return;
    const RowKey key = kDropout ? row_key(a.dropout, row) : RowKey(0);
    const uint32_t threshold = a.dropout.threshold;
    const float scale = a.dropout.scale;
    T* of_block = a.of_block + start;
    float* of_bias = sums.bias;
    lanes.each(n, [&](int64_t c, int64_t slot) {
        const float g = values[slot];
        const float kept = kDropout ? (key.hash(static_cast<uint32_t>(c)) >= threshold ? g * scale : 0.0f) : g;
        of_bias[slot] += kept;
        of_block[c] = from_float<T>(kept);
    });
}

}  // namespace megatron

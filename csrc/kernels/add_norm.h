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
    if (kBlock) {
        const RowKey key = kDropout ? row_key(a.dropout, row) : RowKey(0);
        const DropoutSite site = a.dropout;
        lanes.map(
            n, a.sum + start,
            [&](int64_t c, int64_t slot, float residual, float block, float bias) {
                const float z = residual + (kDropout ? kept(site, key, c, block + bias) : block + bias);
                if (kNorm) values[slot] = to_float(from_float<T>(z));
                return z;
            },
            a.residual + start, a.block + start, a.bias);
    } else {
        lanes.each(n, [&](int64_t, int64_t slot, float residual) { values[slot] = residual; }, a.residual + start);
    }
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
    lanes.map(
        n, a.normalized + start,
        [&](int64_t, int64_t slot, float weight, float shift) { return (values[slot] - mean) * rstd * weight + shift; },
        a.weight, a.shift);
}

template <bool kBlock, bool kDropout, bool kNorm, typename Lanes, typename T>
MEGATRON_HD void add_norm_gradient_row(const Lanes& lanes, const AddNormGradients<T>& a, int64_t row, float* values,
                                       const ColumnSums& sums) {
    const int64_t n = a.columns, start = row * n;
    const bool carried = a.of_sum != nullptr;
    if (kNorm) {
        const T *dy = a.of_normalized + start, *x = a.sum + start;
        const float mean = a.mean[row], rstd = a.rstd[row], inverse = 1.0f / static_cast<float>(n);
        float *of_weight = sums.weight, *of_shift = sums.shift;
        const float first = lanes.sum(
            n,
            [&](int64_t, int64_t slot, float g, float weight) {
                of_shift[slot] += g;
                return values[slot] = g * weight;
            },
            dy, a.weight) * inverse;
        const float second = lanes.sum(
            n,
            [&](int64_t, int64_t slot, float g, float value) {
                const float z = (value - mean) * rstd;
                of_weight[slot] += g * z;
                return values[slot] * z;
            },
            dy, x) * inverse;
        const auto of_value = [&](int64_t slot, float value) {
            const float z = (value - mean) * rstd;
            return (values[slot] - first - z * second) * rstd;
        };
        T* of_residual = a.of_residual + start;
        if (carried) {
            lanes.map(
                n, of_residual,
                [&](int64_t, int64_t slot, float value, float more) {
                    return values[slot] = of_value(slot, value) + more;
                },
                x, a.of_sum + start);
        } else {
            lanes.map(
                n, of_residual,
                [&](int64_t, int64_t slot, float value) { return values[slot] = of_value(slot, value); }, x);
        }
    } else {
        lanes.each(n, [&](int64_t, int64_t slot, float g) { values[slot] = g; }, a.of_sum + start);
    }
    if (!kBlock) return;
    const RowKey key = kDropout ? row_key(a.dropout, row) : RowKey(0);
    const DropoutSite site = a.dropout;
    float* of_bias = sums.bias;
    lanes.map(n, a.of_block + start, [&](int64_t c, int64_t slot) {
        const float g = kDropout ? kept(site, key, c, values[slot]) : values[slot];
        of_bias[slot] += g;
        return g;
    });
}

}  // namespace megatron

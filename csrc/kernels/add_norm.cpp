#include "add_norm.h"

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

template <typename T>
MEGATRON_HD void forward_rows(const AddNorm<T>& a, int64_t first, int64_t last, float* values) {
    const SerialLanes lanes;
    const bool block = a.block != nullptr, dropped = a.dropout.keys != nullptr, norm = a.weight != nullptr;
    for (int64_t row = first; row < last; ++row) {
        if (!block) {
            add_norm_row<false, false, true>(lanes, a, row, values);
        } else if (norm) {
            dropped ? add_norm_row<true, true, true>(lanes, a, row, values)
                    : add_norm_row<true, false, true>(lanes, a, row, values);
        } else {
            dropped ? add_norm_row<true, true, false>(lanes, a, row, values)
                    : add_norm_row<true, false, false>(lanes, a, row, values);
        }
    }
}

template <typename T>
MEGATRON_HD void backward_rows(const AddNormGradients<T>& a, int64_t first, int64_t last, float* values,
                               const ColumnSums& sums) {
    const SerialLanes lanes;
    const bool block = a.of_block != nullptr, dropped = a.dropout.keys != nullptr, norm = a.weight != nullptr;
    for (int64_t row = first; row < last; ++row) {
        if (!block) {
            add_norm_gradient_row<false, false, true>(lanes, a, row, values, sums);
        } else if (norm) {
            dropped ? add_norm_gradient_row<true, true, true>(lanes, a, row, values, sums)
                    : add_norm_gradient_row<true, false, true>(lanes, a, row, values, sums);
        } else {
            dropped ? add_norm_gradient_row<true, true, false>(lanes, a, row, values, sums)
                    : add_norm_gradient_row<true, false, false>(lanes, a, row, values, sums);
        }
    }
}

MEGATRON_CLONES void forward_part(const AddNorm<float>& a, int64_t first, int64_t last, float* values) {
    forward_rows(a, first, last, values);
}

MEGATRON_CLONES void forward_part(const AddNorm<BFloat16>& a, int64_t first, int64_t last, float* values) {
    forward_rows(a, first, last, values);
}

MEGATRON_CLONES void backward_part(const AddNormGradients<float>& a, int64_t first, int64_t last, float* values,
                                   const ColumnSums& sums) {
    backward_rows(a, first, last, values, sums);
}

MEGATRON_CLONES void backward_part(const AddNormGradients<BFloat16>& a, int64_t first, int64_t last, float* values,
                                   const ColumnSums& sums) {
    backward_rows(a, first, last, values, sums);
}

template <typename T>
void forward(const AddNorm<T>& a, int threads) {
    const int64_t n = a.columns;
    float* values = scratch(static_cast<size_t>(threads * n));
    over_parts(a.rows, threads, [&](int64_t first, int64_t last, int thread) {
        forward_part(a, first, last, values + thread * n);
    });
}

template <typename T>
void backward(const AddNormGradients<T>& a, const ColumnSums& sums, int threads) {
    const int64_t n = a.columns;
    float* of_bias = a.of_block == nullptr ? nullptr : sums.bias;
    float *of_weight = a.weight == nullptr ? nullptr : sums.weight, *of_shift = a.weight == nullptr ? nullptr : sums.shift;
    sum_over_rows(a.rows, n, n, threads, {of_bias, of_weight, of_shift},
                  [&](int64_t first, int64_t last, float* own, float* values) {
                      backward_part(a, first, last, values, ColumnSums{own, own + n, own + 2 * n});
                  });
}

}  // namespace

void add_norm(const AddNorm<float>& a, int threads) { forward(a, threads); }
void add_norm(const AddNorm<BFloat16>& a, int threads) { forward(a, threads); }

void add_norm_gradients(const AddNormGradients<float>& a, const ColumnSums& sums, int threads) {
    backward(a, sums, threads);
}

void add_norm_gradients(const AddNormGradients<BFloat16>& a, const ColumnSums& sums, int threads) {
    backward(a, sums, threads);
}

}  // namespace megatron

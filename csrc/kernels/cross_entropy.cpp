#include "cross_entropy.h"

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

template <typename T>
MEGATRON_HD void forward_rows(const CrossEntropy<T>& a, const RowStatistics& out, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) cross_entropy_row(SerialLanes(), a, row, out);
}

template <typename T>
MEGATRON_HD void backward_rows(const CrossEntropy<T>& a, const RowGradients& given, int64_t first,
                               int64_t last, float* of_bias) {
    for (int64_t row = first; row < last; ++row) {
        cross_entropy_gradient_row(SerialLanes(), a, row, given, of_bias);
    }
}

MEGATRON_CLONES void forward_part(const CrossEntropy<float>& a, const RowStatistics& out, int64_t first,
                                  int64_t last) {
    forward_rows(a, out, first, last);
}

MEGATRON_CLONES void forward_part(const CrossEntropy<BFloat16>& a, const RowStatistics& out, int64_t first,
                                  int64_t last) {
    forward_rows(a, out, first, last);
}

MEGATRON_CLONES void backward_part(const CrossEntropy<float>& a, const RowGradients& given,
                                   int64_t first, int64_t last, float* of_bias) {
    backward_rows(a, given, first, last, of_bias);
}

MEGATRON_CLONES void backward_part(const CrossEntropy<BFloat16>& a, const RowGradients& given,
                                   int64_t first, int64_t last, float* of_bias) {
    backward_rows(a, given, first, last, of_bias);
}

template <typename T>
void forward(const CrossEntropy<T>& a, const RowStatistics& out, int threads) {
    over_parts(a.rows, threads, [&](int64_t first, int64_t last, int) { forward_part(a, out, first, last); });
}

template <typename T>
void backward(const CrossEntropy<T>& a, const RowGradients& given, float* of_bias, int threads) {
    sum_over_rows(a.rows, a.columns, 0, threads, {of_bias}, [&](int64_t first, int64_t last, float* sums, float*) {
        backward_part(a, given, first, last, sums);
    });
}

}  // namespace

void cross_entropy(const CrossEntropy<float>& a, const RowStatistics& out, int threads) { forward(a, out, threads); }
void cross_entropy(const CrossEntropy<BFloat16>& a, const RowStatistics& out, int threads) { forward(a, out, threads); }

void cross_entropy_gradients(const CrossEntropy<float>& a, const RowGradients& given, float* of_bias,
                             int threads) {
    backward(a, given, of_bias, threads);
}

void cross_entropy_gradients(const CrossEntropy<BFloat16>& a, const RowGradients& given,
                             float* of_bias, int threads) {
    backward(a, given, of_bias, threads);
}

}  // namespace megatron

#include "softmax.h"

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

template <typename T>
MEGATRON_HD void forward_rows(const Softmax<T>& a, int64_t first, int64_t last, float* values) {
    const SerialLanes lanes;
    for (int64_t row = first; row < last; ++row) {
        a.dropped != nullptr ? softmax_row<true>(lanes, a, row, values) : softmax_row<false>(lanes, a, row, values);
    }
}

template <typename T>
MEGATRON_HD void backward_rows(const SoftmaxGradients<T>& a, int64_t first, int64_t last, float* values) {
    const SerialLanes lanes;
    const bool dropped = a.dropout.keys != nullptr;
    for (int64_t row = first; row < last; ++row) {
        dropped ? softmax_gradient_row<true>(lanes, a, row, values)
                : softmax_gradient_row<false>(lanes, a, row, values);
    }
}

MEGATRON_CLONES void part(const Softmax<float>& a, int64_t first, int64_t last, float* values) {
    forward_rows(a, first, last, values);
}

MEGATRON_CLONES void part(const Softmax<BFloat16>& a, int64_t first, int64_t last, float* values) {
    forward_rows(a, first, last, values);
}

MEGATRON_CLONES void part(const SoftmaxGradients<float>& a, int64_t first, int64_t last, float* values) {
    backward_rows(a, first, last, values);
}

MEGATRON_CLONES void part(const SoftmaxGradients<BFloat16>& a, int64_t first, int64_t last, float* values) {
    backward_rows(a, first, last, values);
}

template <typename Arguments>
void launch(const Arguments& a, int threads) {
    float* values = scratch(static_cast<size_t>(threads * a.columns));
    over_parts(a.rows, threads, [&](int64_t first, int64_t last, int thread) {
        part(a, first, last, values + thread * a.columns);
    });
}

}  // namespace

void softmax(const Softmax<float>& a, int threads) { launch(a, threads); }
void softmax(const Softmax<BFloat16>& a, int threads) { launch(a, threads); }
void softmax_gradients(const SoftmaxGradients<float>& a, int threads) { launch(a, threads); }
void softmax_gradients(const SoftmaxGradients<BFloat16>& a, int threads) { launch(a, threads); }

}  // namespace megatron

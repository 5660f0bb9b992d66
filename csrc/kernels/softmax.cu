#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

template <bool kDropout, int kVector, typename T>
__global__ void __launch_bounds__(kMostThreads) forward_kernel(const Softmax<T> a) {
    const BlockLanes<kVector> lanes;
    float values[kSlots];
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) softmax_row<kDropout>(lanes, a, row, values);
}

template <bool kDropout, int kVector, typename T>
__global__ void __launch_bounds__(kMostThreads) backward_kernel(const SoftmaxGradients<T> a) {
    const BlockLanes<kVector> lanes;
    float values[kSlots];
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        softmax_gradient_row<kDropout>(lanes, a, row, values);
    }
}

}  // namespace

template <typename T>
int cuda_softmax(const Softmax<T>& a, void* stream) {
    if (a.columns > kMostColumns) return kTooManyColumns;
    return with_vector<T>(is_aligned<T>(a.columns, a.scores, a.probabilities, a.dropped), [&](auto vector) {
        const dim3 grid(row_blocks(a.rows));
        const int64_t threads = row_threads(a.columns);
        return a.dropped == nullptr ? launch(forward_kernel<false, vector, T>, grid, threads, stream, a)
                                    : launch(forward_kernel<true, vector, T>, grid, threads, stream, a);
    });
}

template <typename T>
int cuda_softmax_gradients(const SoftmaxGradients<T>& a, void* stream) {
    if (a.columns > kMostColumns) return kTooManyColumns;
    return with_vector<T>(is_aligned<T>(a.columns, a.of_dropped, a.probabilities, a.of_scores), [&](auto vector) {
        const dim3 grid(row_blocks(a.rows));
        const int64_t threads = row_threads(a.columns);
        return a.dropout.keys == nullptr ? launch(backward_kernel<false, vector, T>, grid, threads, stream, a)
                                         : launch(backward_kernel<true, vector, T>, grid, threads, stream, a);
    });
}

template int cuda_softmax(const Softmax<float>&, void*);
template int cuda_softmax(const Softmax<BFloat16>&, void*);
template int cuda_softmax_gradients(const SoftmaxGradients<float>&, void*);
template int cuda_softmax_gradients(const SoftmaxGradients<BFloat16>&, void*);

}  // namespace megatron

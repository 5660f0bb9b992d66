#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

template <bool kDropout, typename Lanes, typename T>
__device__ __forceinline__ void one_row(const Lanes& lanes, const Softmax<T>& a, int64_t row, float* values) {
    softmax_row<kDropout>(lanes, a, row, values);
}

template <bool kDropout, typename Lanes, typename T>
__device__ __forceinline__ void one_row(const Lanes& lanes, const SoftmaxGradients<T>& a, int64_t row, float* values) {
    softmax_gradient_row<kDropout>(lanes, a, row, values);
}

template <bool kDropout, int kVector, typename Arguments>
__global__ void __launch_bounds__(kMostThreads) kernel(const Arguments a) {
    const BlockLanes<kVector> lanes;
    float values[kSlots];
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) one_row<kDropout>(lanes, a, row, values);
}

template <typename T, typename Arguments>
int launch_rows(const Arguments& a, bool dropout, bool aligned, void* stream) {
    if (a.columns > kMostColumns) return kTooManyColumns;
    return with_vector<T>(aligned, [&](auto vector) {
        const dim3 grid(row_blocks(a.rows));
        const int64_t threads = row_threads(a.columns);
        return dropout ? launch(kernel<true, vector, Arguments>, grid, threads, stream, a)
                       : launch(kernel<false, vector, Arguments>, grid, threads, stream, a);
    });
}

}  // namespace

template <typename T>
int cuda_softmax(const Softmax<T>& a, void* stream) {
    return launch_rows<T>(a, a.dropped != nullptr,
                          is_aligned<T>(a.columns, a.scores, a.probabilities, a.dropped), stream);
}

template <typename T>
int cuda_softmax_gradients(const SoftmaxGradients<T>& a, void* stream) {
    return launch_rows<T>(a, a.dropout.keys != nullptr,
                          is_aligned<T>(a.columns, a.of_dropped, a.probabilities, a.of_scores), stream);
}

template int cuda_softmax(const Softmax<float>&, void*);
template int cuda_softmax(const Softmax<BFloat16>&, void*);
template int cuda_softmax_gradients(const SoftmaxGradients<float>&, void*);
template int cuda_softmax_gradients(const SoftmaxGradients<BFloat16>&, void*);

}  // namespace megatron

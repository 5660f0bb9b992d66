#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

constexpr int kRowThreads = 512;

template <int kVector, typename T>
__global__ void __launch_bounds__(kRowThreads) statistics_kernel(const CrossEntropy<T> a, const RowStatistics out) {
    const StreamLanes<kVector> lanes;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) cross_entropy_row(lanes, a, row, out);
}

template <int kVector, typename T>
__global__ void __launch_bounds__(kColumnThreads)
    gradient_kernel(const CrossEntropy<T> a, const RowGradients given, float* workspace) {
    const ColumnLanes<kVector> lanes;
    float of_bias[kVector] = {};
    for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
        cross_entropy_gradient_row(lanes, a, row, given, of_bias);
    }
    store(lanes, a.columns, workspace + blockIdx.y * a.columns, of_bias);
}

}  // namespace

template <typename T>
int cuda_cross_entropy(const CrossEntropy<T>& a, const RowStatistics& out, void* stream) {
    // Rows are read as far as the vocabulary goes, which need not be whole vectors.
    const bool aligned = is_aligned<T>(a.columns, a.logits, a.bias) && is_aligned<T>(a.valid);
    return with_vector<T>(aligned, [&](auto vector) {
        return launch(statistics_kernel<vector, T>, dim3(row_blocks(a.rows)), kRowThreads, stream, a, out);
    });
}

template <typename T>
int cuda_cross_entropy_gradients(const CrossEntropy<T>& a, const RowGradients& given,
                                 float* of_bias, float* workspace, void* stream) {
    const int64_t parts = parts_of(a.rows, a.columns);
    const int code = with_vector<T>(is_aligned<T>(a.columns, a.logits, a.bias, workspace), [&](auto vector) {
        const dim3 grid(column_blocks(a.columns, vector), static_cast<unsigned>(parts));
        return launch(gradient_kernel<vector, T>, grid, kColumnThreads, stream, a, given, workspace);
    });
    return code != 0 ? code : sum_parts({workspace, parts, 1, a.columns, {of_bias}}, stream);
}

template int cuda_cross_entropy(const CrossEntropy<float>&, const RowStatistics&, void*);
template int cuda_cross_entropy(const CrossEntropy<BFloat16>&, const RowStatistics&, void*);
template int cuda_cross_entropy_gradients(const CrossEntropy<float>&, const RowGradients&, float*, float*, void*);
template int cuda_cross_entropy_gradients(const CrossEntropy<BFloat16>&, const RowGradients&, float*, float*, void*);

}  // namespace megatron

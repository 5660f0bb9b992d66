#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

template <bool kBlock, bool kDropout, bool kNorm, int kVector, typename T>
__global__ void __launch_bounds__(kMostThreads) forward_kernel(const AddNorm<T> a) {
    const BlockLanes<kVector> lanes;
    float values[kSlots];
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        add_norm_row<kBlock, kDropout, kNorm>(lanes, a, row, values);
    }
}

// kThreads: at most; with half of a block's threads each may have twice the registers.
template <bool kBlock, bool kDropout, bool kNorm, int kVector, int kThreads, typename T>
__global__ void __launch_bounds__(kThreads) backward_kernel(const AddNormGradients<T> a, float* workspace) {
    const BlockLanes<kVector> lanes;
    float values[kSlots], of_bias[kSlots] = {}, of_weight[kSlots] = {}, of_shift[kSlots] = {};
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        add_norm_gradient_row<kBlock, kDropout, kNorm>(lanes, a, row, values, {of_bias, of_weight, of_shift});
    }
    float* own = workspace + blockIdx.x * 3 * a.columns;
    if (kBlock) store(lanes, a.columns, own, of_bias);
    if (kNorm) {
        store(lanes, a.columns, own + a.columns, of_weight);
        store(lanes, a.columns, own + 2 * a.columns, of_shift);
    }
}

template <bool value>
using Constant = std::bool_constant<value>;

// f(block, dropout, norm) with what of them there is.
template <typename F>
int with_parts(bool block, bool dropout, bool norm, F f) {
    if (!block) return f(Constant<false>(), Constant<false>(), Constant<true>());
    if (norm) {
        return dropout ? f(Constant<true>(), Constant<true>(), Constant<true>())
                       : f(Constant<true>(), Constant<false>(), Constant<true>());
    }
    return dropout ? f(Constant<true>(), Constant<true>(), Constant<false>())
                   : f(Constant<true>(), Constant<false>(), Constant<false>());
}

}  // namespace

template <typename T>
int cuda_add_norm(const AddNorm<T>& a, void* stream) {
    if (a.columns > kMostColumns) return kTooManyColumns;
    const bool block = a.block != nullptr, dropout = a.dropout.keys != nullptr, norm = a.weight != nullptr;
    const bool aligned =
        is_aligned<T>(a.columns, a.block, a.bias, a.residual, a.weight, a.shift, a.sum, a.normalized);
    return with_parts(block, dropout, norm, [&](auto has_block, auto has_dropout, auto has_norm) {
        return with_vector<T>(aligned, [&](auto vector) {
            return launch(forward_kernel<has_block, has_dropout, has_norm, vector, T>, dim3(row_blocks(a.rows)),
                          row_threads(a.columns), stream, a);
        });
    });
}

template <typename T>
int cuda_add_norm_gradients(const AddNormGradients<T>& a, const ColumnSums& sums, float* workspace, void* stream) {
    if (a.columns > kMostColumns) return kTooManyColumns;
    const bool block = a.of_block != nullptr, dropout = a.dropout.keys != nullptr, norm = a.weight != nullptr;
    const bool aligned = is_aligned<T>(a.columns, a.of_sum, a.of_normalized, a.sum, a.weight, a.of_residual,
                                       a.of_block, workspace);
    const int64_t threads = row_threads(a.columns), parts = parts_of(a.rows, a.columns);
    const int code = with_parts(block, dropout, norm, [&](auto has_block, auto has_dropout, auto has_norm) {
        return with_vector<T>(aligned, [&](auto vector) {
            const dim3 grid(static_cast<unsigned>(parts));
            return threads <= kMostThreads / 2
                       ? launch(backward_kernel<has_block, has_dropout, has_norm, vector, kMostThreads / 2, T>, grid,
                                threads, stream, a, workspace)
                       : launch(backward_kernel<has_block, has_dropout, has_norm, vector, kMostThreads, T>, grid,
                                threads, stream, a, workspace);
        });
    });
    if (code != 0) return code;
    return sum_parts({workspace, parts, 3, a.columns,
                      {block ? sums.bias : nullptr, norm ? sums.weight : nullptr, norm ? sums.shift : nullptr}},
                     stream);
}

template int cuda_add_norm(const AddNorm<float>&, void*);
template int cuda_add_norm(const AddNorm<BFloat16>&, void*);
template int cuda_add_norm_gradients(const AddNormGradients<float>&, const ColumnSums&, float*, void*);
template int cuda_add_norm_gradients(const AddNormGradients<BFloat16>&, const ColumnSums&, float*, void*);

}  // namespace megatron

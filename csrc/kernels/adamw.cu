#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

constexpr int kThreads = 256;

template <bool kCopy, int kVector>
__global__ void __launch_bounds__(kThreads) update_kernel(const AdamW a) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kVector;
    for (int64_t i = ColumnLanes<kVector>::first(); i < a.count; i += step) {
        Pack<kVector> weight = read<kVector>(a.weights + i), first = read<kVector>(a.first + i);
        Pack<kVector> second = read<kVector>(a.second + i);
        const Pack<kVector> gradient = read<kVector>(a.gradients + i);
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
            const Updated now = updated(a, weight.at[v], first.at[v], second.at[v], gradient.at[v]);
            weight.at[v] = now.weight;
            first.at[v] = now.first;
            second.at[v] = now.second;
        }
        write<kVector>(a.weights + i, weight);
        write<kVector>(a.first + i, first);
        write<kVector>(a.second + i, second);
        if (kCopy) write<kVector>(a.copy + i, weight);
    }
}

// In fp64: each thread's own, and then those of the block in order.
__device__ double block_sum(double x) {
    __shared__ double parts[kThreads / 32];
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    double total = 0.0;
    for (int warp = 0; warp < kThreads / 32; ++warp) total += parts[warp];
    return total;
}

template <int kVector>
__global__ void __launch_bounds__(kThreads) squares_kernel(const float* x, int64_t count, double* workspace) {
    double own = 0.0;
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kVector;
#pragma unroll 4
    for (int64_t i = ColumnLanes<kVector>::first(); i < count; i += step) {
        const Pack<kVector> values = read<kVector>(x + i);
#pragma unroll
        for (int v = 0; v < kVector; ++v) own += static_cast<double>(values.at[v]) * static_cast<double>(values.at[v]);
    }
    const double total = block_sum(own);
    if (threadIdx.x == 0) workspace[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads) sum_kernel(const double* parts, double* total) {
    double own = 0.0;
    for (int64_t part = threadIdx.x; part < kMostParts; part += kThreads) own += parts[part];
    const double sum = block_sum(own);
    if (threadIdx.x == 0) *total = sum;
}

}  // namespace

int cuda_adamw(const AdamW& a, void* stream) {
    // Whole vectors, and what is left of the last one by itself.
    const bool aligned = is_aligned<float>(0, a.weights, a.first, a.second, a.gradients) &&
                         reinterpret_cast<uintptr_t>(a.copy) % 8 == 0;
    const int64_t whole = aligned ? a.count / 4 * 4 : 0;
    const auto update = [&](auto vector, const AdamW& part) {
        const int64_t a_block = int64_t{kThreads} * vector;
        const dim3 grid(static_cast<unsigned>(std::min<int64_t>((part.count + a_block - 1) / a_block, kMostBlocks)));
        return part.copy == nullptr ? launch(update_kernel<false, vector>, grid, kThreads, stream, part)
                                    : launch(update_kernel<true, vector>, grid, kThreads, stream, part);
    };
    AdamW first = a, rest = a;
    first.count = whole;
    rest.count = a.count - whole;
    rest.weights += whole;
    rest.first += whole;
    rest.second += whole;
    rest.gradients += whole;
    if (a.copy != nullptr) rest.copy += whole;
    const int code = update(std::integral_constant<int, 4>(), first);
    return code != 0 ? code : update(std::integral_constant<int, 1>(), rest);
}

int cuda_sum_of_squares(const float* x, int64_t count, double* workspace, double* total, void* stream) {
    const dim3 grid(static_cast<unsigned>(kMostParts));
    const int code = with_vector<float>(is_aligned<float>(count, x), [&](auto vector) {
        return launch(squares_kernel<vector>, grid, kThreads, stream, x, count, workspace);
    });
    return code != 0 ? code : launch(sum_kernel, dim3(1), kThreads, stream, workspace, total);
}

}  // namespace megatron

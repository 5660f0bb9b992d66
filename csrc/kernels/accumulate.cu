#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

constexpr int64_t kPartColumns = 32, kPartRows = 8;

// A block has kPartColumns columns; each of its kPartRows groups of threads adds every kPartRows-th part.
__global__ void __launch_bounds__(kPartColumns* kPartRows) sum_parts_kernel(const PartSums a) {
    __shared__ float group_sums[kPartRows][kPartColumns];
    const int64_t own = threadIdx.x % kPartColumns, group = threadIdx.x / kPartColumns;
    const int64_t column = blockIdx.x * kPartColumns + own;
    float* into = a.into[blockIdx.y];
    float total = 0.0f;
    if (column < a.columns && into != nullptr) {
        for (int64_t part = group; part < a.parts; part += kPartRows) {
            total += a.workspace[(part * a.sums + blockIdx.y) * a.columns + column];
        }
    }
    group_sums[group][own] = total;
    __syncthreads();
    if (group != 0 || column >= a.columns || into == nullptr) return;
    for (int64_t other = 1; other < kPartRows; ++other) total += group_sums[other][own];
    into[column] += total;
}

template <int kVector, typename T>
__global__ void __launch_bounds__(kColumnThreads) add_kernel(float* into, const T* x, int64_t count) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kVector;
    for (int64_t i = ColumnLanes<kVector>::first(); i < count; i += step) {
        const Pack<kVector> sum = read<kVector>(into + i), more = read<kVector>(x + i);
        const auto add = [](int64_t, int64_t, float a, float b) { return a + b; };
        write<kVector>(into + i, call_map<kVector>(add, i, 0, sum, more));
    }
}

template <int kVector, typename T>
__global__ void __launch_bounds__(kColumnThreads)
    sum_rows_kernel(const T* x, int64_t rows, int64_t columns, float* workspace) {
    const ColumnLanes<kVector> lanes;
    float sums[kVector] = {};
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        lanes.each(columns, [&](int64_t, int64_t slot, float value) { sums[slot] += value; }, x + row * columns);
    }
    store(lanes, columns, workspace + blockIdx.y * columns, sums);
}

}  // namespace

int sum_parts(const PartSums& a, void* stream) {
    if (a.parts == 0) return 0;
    const dim3 grid(static_cast<unsigned>((a.columns + kPartColumns - 1) / kPartColumns), static_cast<unsigned>(a.sums));
    return launch(sum_parts_kernel, grid, kPartColumns * kPartRows, stream, a);
}

template <typename T>
int cuda_add_rows(float* into, const T* x, int64_t rows, int64_t columns, float* workspace, void* stream) {
    if (rows == 1) {
        return with_vector<T>(is_aligned<T>(columns, into, x), [&](auto vector) {
            const dim3 grid(std::min(column_blocks(columns, vector), kMostBlocks));
            return launch(add_kernel<vector, T>, grid, kColumnThreads, stream, into, x, columns);
        });
    }
    const int64_t parts = parts_of(rows, columns);
    const int code = with_vector<T>(is_aligned<T>(columns, x, workspace), [&](auto vector) {
        const dim3 grid(column_blocks(columns, vector), static_cast<unsigned>(parts));
        return launch(sum_rows_kernel<vector, T>, grid, kColumnThreads, stream, x, rows, columns, workspace);
    });
    return code != 0 ? code : sum_parts({workspace, parts, 1, columns, {into}}, stream);
}

template int cuda_add_rows(float*, const float*, int64_t, int64_t, float*, void*);
template int cuda_add_rows(float*, const BFloat16*, int64_t, int64_t, float*, void*);

}  // namespace megatron

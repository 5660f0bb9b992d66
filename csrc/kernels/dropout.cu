#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

template <int kVector, typename T>
__global__ void __launch_bounds__(kColumnThreads) dropout_kernel(const Dropout<T> a) {
    for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) dropout_row(ColumnLanes<kVector>(), a, row);
}

}  // namespace

template <typename T>
int cuda_dropout(const Dropout<T>& a, void* stream) {
    return with_vector<T>(is_aligned<T>(a.columns, a.x, a.y), [&](auto vector) {
        const dim3 grid(column_blocks(a.columns, vector), column_rows(a.rows));
        return launch(dropout_kernel<vector, T>, grid, kColumnThreads, stream, a);
    });
}

template int cuda_dropout(const Dropout<float>&, void*);
template int cuda_dropout(const Dropout<BFloat16>&, void*);

}  // namespace megatron

#include "accumulate.h"

#include <algorithm>

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

MEGATRON_CLONES void add_part(float* into, const float* x, int64_t count, int64_t rows, int64_t stride) {
    for (int64_t row = 0; row < rows; ++row) add_stretch(SerialLanes(), into, x + row * stride, count);
}

MEGATRON_CLONES void add_part(float* into, const BFloat16* x, int64_t count, int64_t rows, int64_t stride) {
    for (int64_t row = 0; row < rows; ++row) add_stretch(SerialLanes(), into, x + row * stride, count);
}

// A thread has some columns of all rows, so sums do not depend on the number of threads.
template <typename T>
void launch(float* into, const T* x, int64_t rows, int64_t columns, int threads) {
    if (rows == 1) {
        over_parts(columns, threads, [&](int64_t first, int64_t last, int) {
            add_part(into + first, x + first, last - first, 1, columns);
        });
        return;
    }
    float* sums = scratch(static_cast<size_t>(columns));
    std::fill(sums, sums + columns, 0.0f);
    over_parts(columns, threads, [&](int64_t first, int64_t last, int) {
        in_stretches(0, rows, sums + first, into + first, last - first, [&](int64_t row, int64_t end) {
            add_part(sums + first, x + row * columns + first, last - first, end - row, columns);
        });
    });
}

}  // namespace

void add_rows(float* into, const float* x, int64_t rows, int64_t columns, int threads) {
    launch(into, x, rows, columns, threads);
}

void add_rows(float* into, const BFloat16* x, int64_t rows, int64_t columns, int threads) {
    launch(into, x, rows, columns, threads);
}

}  // namespace megatron

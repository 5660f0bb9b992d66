// How the CPU launchers divide rows among threads, and add up what each thread summed over its rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace megatron {

// f(first row, last row, thread) on each of `threads` threads, equal contiguous parts.
template <typename F>
void over_parts(int64_t rows, int threads, F f) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int64_t thread = omp_get_thread_num(), size = omp_get_num_threads();
        f(rows * thread / size, rows * (thread + 1) / size, static_cast<int>(thread));
    }
#else
    (void)threads;
    f(static_cast<int64_t>(0), rows, 0);
#endif
}

// Memory of the calling thread that stays: a big block that is taken anew at each call costs page faults.
inline float* scratch(size_t count) {
    thread_local std::vector<float> kept;
    if (kept.size() < count) kept.resize(count);
    return kept.data();
}

// f(first row, last row) on stretches of a part; what it added to `sums` [columns] moves to `totals` after each, so that
// rounding errors grow with the number of stretches and not of rows.
template <typename F>
void in_stretches(int64_t first, int64_t last, float* sums, float* totals, int64_t columns, F f) {
    constexpr int64_t kRows = 32;
    for (int64_t row = first; row < last; row += kRows) {
        f(row, std::min(last, row + kRows));
        for (int64_t c = 0; c < columns; ++c) {
            totals[c] += sums[c];
            sums[c] = 0.0f;
        }
    }
}

// Sums of columns of one thread each, [threads, columns], added in order of the threads to `into`.
inline void add_parts(const float* parts, int threads, int64_t stride, int64_t columns, float* into) {
    for (int t = 0; t < threads; ++t) {
        for (int64_t c = 0; c < columns; ++c) into[c] += parts[t * stride + c];
    }
}

}  // namespace megatron

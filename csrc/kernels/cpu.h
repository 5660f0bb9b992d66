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

// Sums over rows: f(first row, last row, sums, values) adds those of a stretch to `sums`, one [columns] behind the other
// for each of `into`, and works in `values`. They are added to `into` in order of the threads, where that is not null.
template <size_t kSums, typename F>
void sum_over_rows(int64_t rows, int64_t columns, int64_t values, int threads, float* const (&into)[kSums], F f) {
    const int64_t size = static_cast<int64_t>(kSums) * columns, stride = 2 * size + values;
    float* kept = scratch(static_cast<size_t>(threads * stride));
    std::fill(kept, kept + threads * stride, 0.0f);
    over_parts(rows, threads, [&](int64_t first, int64_t last, int thread) {
        float *totals = kept + thread * stride, *sums = totals + size;
        in_stretches(first, last, sums, totals, size, [&](int64_t row, int64_t end) { f(row, end, sums, sums + size); });
    });
    for (size_t i = 0; i < kSums; ++i) {
        for (int t = 0; t < threads && into[i] != nullptr; ++t) {
            const float* totals = kept + t * stride + static_cast<int64_t>(i) * columns;
            for (int64_t c = 0; c < columns; ++c) into[i][c] += totals[c];
        }
    }
}

}  // namespace megatron

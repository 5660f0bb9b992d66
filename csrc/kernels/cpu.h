// How the CPU launchers divide rows among threads, and add up what each thread summed over its rows.
#pragma once

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

// Sums of columns of one thread each, [threads, columns], added in order of the threads to `into`.
inline void add_parts(const float* parts, int threads, int64_t stride, int64_t columns, float* into) {
    for (int t = 0; t < threads; ++t) {
        for (int64_t c = 0; c < columns; ++c) into[c] += parts[t * stride + c];
    }
}

}  // namespace megatron

// Rows of sums of table rows. An id below zero stands for a row of zeros.
#pragma once

#include "portable.h"

namespace megatron {

constexpr int kMostTables = 4;

template <typename T>
struct Embedding {
    int64_t rows, columns;
    int tables;
    const T* table[kMostTables];
    const int64_t* ids;  // [tables, rows]
    T* out;
};

template <typename T>
struct EmbeddingGradients {
    int64_t rows, columns;
    int tables;
    float* into[kMostTables];  // added to
    const int64_t* ids;        // [tables, rows]
    const T* gradient;
};

template <typename Lanes, typename T>
MEGATRON_HD void embedding_row(const Lanes& lanes, const Embedding<T>& a, int64_t row, float* values) {
    const int64_t n = a.columns;
    lanes.each(n, [&](int64_t, int64_t slot) { values[slot] = 0.0f; });
    for (int t = 0; t < a.tables; ++t) {
        const int64_t id = a.ids[t * a.rows + row];
        if (id < 0) continue;
        lanes.each(n, [&](int64_t, int64_t slot, float x) { values[slot] += x; }, a.table[t] + id * n);
    }
    lanes.map(n, a.out + row * n, [&](int64_t, int64_t slot) { return values[slot]; });
}

// Columns first..last - 1 of a row, so that threads with different columns never meet.
template <typename Lanes, typename T>
MEGATRON_HD void embedding_gradient_row(const Lanes& lanes, const EmbeddingGradients<T>& a, int64_t row, int64_t first,
                                        int64_t last) {
    const T* gradient = a.gradient + row * a.columns + first;
    for (int t = 0; t < a.tables; ++t) {
        const int64_t id = a.ids[t * a.rows + row];
        if (id < 0) continue;
        float* into = a.into[t] + id * a.columns + first;
        lanes.map(last - first, into, [&](int64_t, int64_t, float x, float y) { return x + y; }, into, gradient);
    }
}

}  // namespace megatron

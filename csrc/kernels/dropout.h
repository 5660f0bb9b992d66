// Rows of dropout alone.
#pragma once

#include "keep.h"
#include "portable.h"

namespace megatron {

// y may be x.
template <typename T>
struct Dropout {
    int64_t rows, columns;
    const T* x;
    T* y;
    DropoutSite site;
};

template <typename Lanes, typename T>
MEGATRON_HD void dropout_row(const Lanes& lanes, const Dropout<T>& a, int64_t row) {
    const RowKey key = row_key(a.site, row);
    const DropoutSite site = a.site;
    const int64_t start = row * a.columns;
    lanes.map(
        a.columns, a.y + start, [&](int64_t c, int64_t, float x) { return kept(site, key, c, x); }, a.x + start);
}

}  // namespace megatron

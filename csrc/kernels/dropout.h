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
    const uint32_t threshold = a.site.threshold;
    const float scale = a.site.scale;
    const T* x = a.x + row * a.columns;
    T* y = a.y + row * a.columns;
    lanes.each(a.columns, [&](int64_t c, int64_t) {
        y[c] = from_float<T>(key.hash(static_cast<uint32_t>(c)) >= threshold ? to_float(x[c]) * scale : 0.0f);
    });
}

}  // namespace megatron

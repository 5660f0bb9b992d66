// Gradients added to fp32 memory: of the same shape, or summed over rows.
#pragma once

#include "portable.h"

namespace megatron {

template <typename Lanes, typename T>
MEGATRON_HD void add_stretch(const Lanes& lanes, float* into, const T* x, int64_t count) {
    lanes.each(count, [&](int64_t i, int64_t) { into[i] += to_float(x[i]); });
}

}  // namespace megatron

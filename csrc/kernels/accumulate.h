// Gradients added to fp32 memory: of the same shape, or summed over rows.
#pragma once

#include "portable.h"

namespace megatron {

template <typename Lanes, typename T>
MEGATRON_HD void add_stretch(const Lanes& lanes, float* into, const T* x, int64_t count) {
    lanes.map(count, into, [&](int64_t, int64_t, float sum, float value) { return sum + value; }, into, x);
}

}  // namespace megatron

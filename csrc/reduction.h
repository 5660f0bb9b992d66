#pragma once

#include <cstdint>

namespace megatron {

enum class Element : int { float32 = 0, bfloat16 = 1, float64 = 2, int64 = 3 };
enum class Reduction : int { sum = 0, max = 1, min = 2 };

constexpr int64_t bytes_of(Element element) {
    return element == Element::bfloat16 ? 2 : element == Element::float32 ? 4 : 8;
}

// out[i] = sources[0][i] + sources[1][i] + ... (or max, min; a NaN stays a NaN) in exactly this order, the same
// wherever i stands. bfloat16 is added in float32 and rounded once. out may be one of the sources; `copy`, if not
// null, gets the same values and may not overlap anything.
void reduce_elements(const void* const* sources, int count_of_sources, void* out, void* copy, int64_t count,
                     Element element, Reduction reduction);

}  // namespace megatron

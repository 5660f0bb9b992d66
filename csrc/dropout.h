#pragma once

#include <cstdint>

namespace megatron {

enum class DType : int { float32 = 0, bfloat16 = 1 };

// y[r, c] = keep(r, c) ? x[r, c] / (1 - probability) : 0 for row-major [rows, cols]; y may be x.
// keep is a hash of (keys[r], site_key, c + column_offset), so a shard of the columns gets its part of the same mask.
void dropout(const void* x, void* y, int64_t rows, int64_t cols, const uint64_t* keys, uint64_t site_key,
             uint32_t column_offset, double probability, DType dtype, int threads);

}  // namespace megatron

#include "dropout.h"

#include <algorithm>
#include <cstring>

#include "clones.h"
#include "hash.h"

namespace megatron {
namespace {

inline uint32_t column_hash(uint32_t column, uint32_t low, uint32_t high) {
    return mix32(mix32(column ^ low) + high);
}

MEGATRON_CLONES
void dropout_row(const float* x, float* y, int64_t cols, uint64_t key, uint32_t offset, uint32_t threshold,
                 float keep_probability) {
    const uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    for (int64_t c = 0; c < cols; ++c) {
        const float kept = x[c] / keep_probability;
        y[c] = column_hash(static_cast<uint32_t>(c) + offset, low, high) >= threshold ? kept : 0.0f;
    }
}

MEGATRON_CLONES
void dropout_row(const uint16_t* x, uint16_t* y, int64_t cols, uint64_t key, uint32_t offset, uint32_t threshold,
                 float keep_probability) {
    const uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    for (int64_t c = 0; c < cols; ++c) {
        const uint32_t wide = static_cast<uint32_t>(x[c]) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        value /= keep_probability;
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
        const uint32_t quiet = (bits >> 16) | 0x40u;                            // a NaN stays a NaN
        const uint32_t kept = (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
        const uint32_t hash = column_hash(static_cast<uint32_t>(c) + offset, low, high);
        y[c] = static_cast<uint16_t>(hash >= threshold ? kept : 0u);
    }
}

template <typename T>
void dropout_rows(const T* x, T* y, int64_t rows, int64_t cols, const uint64_t* keys, uint64_t site_key,
                  uint32_t offset, uint32_t threshold, float keep_probability, int threads) {
    (void)threads;  // unused where OpenMP is not available
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t r = 0; r < rows; ++r) {
        dropout_row(x + r * cols, y + r * cols, cols, mix64(keys[r] ^ site_key), offset, threshold, keep_probability);
    }
}

}  // namespace

void dropout(const void* x, void* y, int64_t rows, int64_t cols, const uint64_t* keys, uint64_t site_key,
             uint32_t column_offset, double probability, DType dtype, int threads) {
    const uint32_t threshold = static_cast<uint32_t>(std::min(probability * 4294967296.0, 4294967295.0));
    const float keep_probability = static_cast<float>(1.0 - probability);
    if (dtype == DType::float32) {
        dropout_rows(static_cast<const float*>(x), static_cast<float*>(y), rows, cols, keys, site_key, column_offset,
                     threshold, keep_probability, threads);
    } else {
        dropout_rows(static_cast<const uint16_t*>(x), static_cast<uint16_t*>(y), rows, cols, keys, site_key,
                     column_offset, threshold, keep_probability, threads);
    }
}

}  // namespace megatron

// Vectors of MEGATRON_VECTOR_BYTES and what attention computes with them element by element.
// No include guard: attention_targets.cpp includes this once for each instruction set, in a namespace of its own.

constexpr int64_t kLanes = MEGATRON_VECTOR_BYTES / 4;

typedef float Vec __attribute__((vector_size(MEGATRON_VECTOR_BYTES), may_alias));
typedef uint32_t Words __attribute__((vector_size(MEGATRON_VECTOR_BYTES), may_alias));
typedef uint32_t Word __attribute__((may_alias));  // a float, or two bf16 that are next to each other in a sum

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Addresses are aligned: rows of the scratch memory are a multiple of a vector long.
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline Words load(const Word* p) { return *reinterpret_cast<const Words*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }
inline void store(Word* p, Words x) { *reinterpret_cast<Words*>(p) = x; }

// Halves onto each other until one element is left.
inline float sum(Vec x) {
    alignas(MEGATRON_VECTOR_BYTES) float lanes[kLanes];
    store(lanes, x);
#pragma GCC unroll 4
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
}

inline float maximum(Vec x) {
    alignas(MEGATRON_VECTOR_BYTES) float lanes[kLanes];
    store(lanes, x);
#pragma GCC unroll 4
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
    return lanes[0];
}

// exp(x) for x <= 0 within 1 ulp of the true value (2^k times a polynomial on [-ln 2 / 2, ln 2 / 2], Cephes'
// coefficients); 0 where it would be below the normal numbers. A NaN stays one.
inline Vec exponential(Vec x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the integer nearest to the other summand
    const Vec shifted = x * 1.44269504088896341f + magic;
    const Vec k = shifted - magic;
    const Vec r = x - k * 0.693359375f + k * 2.12194440e-4f;
    Vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    const Words power = ((Words)shifted << 23) + 0x3f800000u;
    return x < -87.0f ? Vec{} : y * (Vec)power;
}

// Which elements of a row dropout keeps: RowKey of keep.h for vectors.
struct RowMask {
    RowKey key;
    uint32_t threshold;

    // All bits of the kept ones of the elements from `column` on.
    auto kept(int64_t column) const {
        Words x;
        for (int64_t i = 0; i < kLanes; ++i) x[i] = static_cast<uint32_t>(i);
        x = (x + static_cast<uint32_t>(column)) ^ key.low;
        return mix(mix(x) + key.high) >= threshold;
    }

  private:
    static Words mix(Words x) {  // mix32 of hash.h
        x ^= x >> 16;
        x *= 0x21f0aaadu;
        x ^= x >> 15;
        x *= 0x735a2d97u;
        return x ^ (x >> 15);
    }
};

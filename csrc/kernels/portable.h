// What the arithmetic of rows is written in, for the CPU and for CUDA: number formats and loops over a row.
//
// A row function is a template over the number format and over Lanes, which says how a row is walked. On the CPU one
// thread has the whole row and the compiler makes vectors of the loops; on a GPU the threads of a block share it
// (cuda_lanes.h). Lanes has, of these, what the operations for it need:
//   each(columns, f, inputs...)         f(column, slot, x...) with the inputs' elements in fp32
//   map(columns, output, f, inputs...)  the same; what f returns becomes the output's element, which may be an input's
//   sum, max(columns, f, inputs...)     of what f returns, given to every thread
// slot: where a value of this column may be kept between loops, by the thread that has the column.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MEGATRON_HD __host__ __device__ __forceinline__
#else
#define MEGATRON_HD inline __attribute__((always_inline))
#endif

namespace megatron {

constexpr float kLowest = -3.402823466e38f;

enum class DType : int { float32 = 0, bfloat16 = 1 };

enum class BFloat16 : uint16_t {};  // the upper half of an fp32 number's bits; a scalar, so that loops become vectors

MEGATRON_HD float to_float(float x) { return x; }

MEGATRON_HD float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

MEGATRON_HD uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

MEGATRON_HD float to_float(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x) << 16); }

template <typename T>
MEGATRON_HD T from_float(float x);

template <>
MEGATRON_HD float from_float<float>(float x) {
    return x;
}

// To nearest, ties to even; a NaN stays a NaN.
template <>
MEGATRON_HD BFloat16 from_float<BFloat16>(float x) {
    const uint32_t bits = float_to_bits(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40u;
    return static_cast<BFloat16>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

#if !defined(__CUDACC__)
// The whole row in one thread.
struct SerialLanes {
    template <typename F, typename... T>
    MEGATRON_HD void each(int64_t columns, F f, const T*... x) const {
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) f(c, c, to_float(x[c])...);
    }

    template <typename Out, typename F, typename... T>
    MEGATRON_HD void map(int64_t columns, Out* out, F f, const T*... x) const {
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) out[c] = from_float<Out>(f(c, c, to_float(x[c])...));
    }

    template <typename F, typename... T>
    MEGATRON_HD float sum(int64_t columns, F f, const T*... x) const {
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t c = 0; c < columns; ++c) total += f(c, c, to_float(x[c])...);
        return total;
    }

    template <typename F, typename... T>
    MEGATRON_HD float max(int64_t columns, F f, const T*... x) const {
        float largest = kLowest;
#pragma omp simd reduction(max : largest)
        for (int64_t c = 0; c < columns; ++c) {
            const float value = f(c, c, to_float(x[c])...);
            largest = largest > value ? largest : value;
        }
        return largest;
    }
};
#endif

}  // namespace megatron

// How the threads of a CUDA block walk a row: the Lanes of portable.h. Elements are read and written 16 bytes at a time
// where kVector of them are as many; then addresses are multiples of 16 and columns one of kVector.
#pragma once

#include "cross_entropy.h"
#include "cuda_kernels.h"
#include "cuda_target.h"
#include "portable.h"

namespace megatron {

template <int kVector>
struct Pack {
    float at[kVector];
};

template <int kVector, typename T>
__device__ __forceinline__ Pack<kVector> read(const T* from) {
    constexpr int kBytes = kVector * static_cast<int>(sizeof(T));
    alignas(16) T elements[kVector];
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
        for (int i = 0; i < kBytes / 16; ++i) {
            const uint4 bits = reinterpret_cast<const uint4*>(from)[i];
            memcpy(reinterpret_cast<char*>(elements) + 16 * i, &bits, 16);
        }
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) elements[i] = from[i];
    }
    Pack<kVector> pack;
#pragma unroll
    for (int i = 0; i < kVector; ++i) pack.at[i] = to_float(elements[i]);
    return pack;
}

template <int kVector, typename T>
__device__ __forceinline__ void write(T* to, const Pack<kVector>& pack) {
    constexpr int kBytes = kVector * static_cast<int>(sizeof(T));
    alignas(16) T elements[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) elements[i] = from_float<T>(pack.at[i]);
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
        for (int i = 0; i < kBytes / 16; ++i) {
            uint4 bits;
            memcpy(&bits, reinterpret_cast<const char*>(elements) + 16 * i, 16);
            reinterpret_cast<uint4*>(to)[i] = bits;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) to[i] = elements[i];
    }
}

// f of kVector neighbouring columns.
template <int kVector, typename F, typename... P>
__device__ __forceinline__ void call_each(F& f, int64_t column, int slot, const P&... inputs) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) f(column + i, static_cast<int64_t>(slot + i), inputs.at[i]...);
}

template <int kVector, typename F, typename... P>
__device__ __forceinline__ Pack<kVector> call_map(F& f, int64_t column, int slot, const P&... inputs) {
    Pack<kVector> results;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        results.at[i] = f(column + i, static_cast<int64_t>(slot + i), inputs.at[i]...);
    }
    return results;
}

struct Sum {
    static constexpr float kNothing = 0.0f;
    __device__ __forceinline__ static float of(float a, float b) { return a + b; }
};

struct Max {
    static constexpr float kNothing = kLowest;
    __device__ __forceinline__ static float of(float a, float b) { return a > b ? a : b; }
};

template <typename Reduction>
__device__ __forceinline__ float reduce_warp(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x = Reduction::of(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// Of one value of each thread of the block, given to all of them, in an order that only the number of threads decides.
// Two places alternate, so that one barrier a call is enough: no thread is two calls ahead of another.
template <typename Reduction>
__device__ __forceinline__ float reduce_block(float x, int& place) {
    __shared__ float parts[2][kMostThreads / 32];
    x = reduce_warp<Reduction>(x);
    if (blockDim.x <= 32) return x;
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) parts[place][warp] = x;
    __syncthreads();
    x = reduce_warp<Reduction>(lane < warps ? parts[place][lane] : Reduction::kNothing);
    place ^= 1;
    return x;
}

// Of what f returns for the columns of a row that a block has.
template <typename Reduction, typename Lanes, typename F, typename... T>
__device__ __forceinline__ float reduce_row(const Lanes& lanes, int64_t columns, F f, const T*... x) {
    float own = Reduction::kNothing;
    lanes.each(
        columns, [&](int64_t c, int64_t slot, auto... values) { own = Reduction::of(own, f(c, slot, values...)); },
        x...);
    return reduce_block<Reduction>(own, lanes.place);
}

// Write what each thread kept of its columns.
template <typename Lanes>
__device__ __forceinline__ void store(const Lanes& lanes, int64_t columns, float* out, const float* values) {
    lanes.map(columns, out, [&](int64_t, int64_t slot) { return values[slot]; });
}

// A block has a row, and each thread keeps kSlots of its columns.
template <int kVector>
struct BlockLanes {
    mutable int place = 0;

    template <typename F, typename... T>
    __device__ __forceinline__ void each(int64_t columns, F f, const T*... x) const {
#pragma unroll
        for (int slot = 0; slot < kSlots; slot += kVector) {
            const int64_t c = column(slot);
            if (c < columns) call_each<kVector>(f, c, slot, read<kVector>(x + c)...);
        }
    }

    template <typename Out, typename F, typename... T>
    __device__ __forceinline__ void map(int64_t columns, Out* out, F f, const T*... x) const {
#pragma unroll
        for (int slot = 0; slot < kSlots; slot += kVector) {
            const int64_t c = column(slot);
            if (c < columns) write<kVector>(out + c, call_map<kVector>(f, c, slot, read<kVector>(x + c)...));
        }
    }

    template <typename F, typename... T>
    __device__ __forceinline__ float sum(int64_t columns, F f, const T*... x) const {
        return reduce_row<Sum>(*this, columns, f, x...);
    }

    template <typename F, typename... T>
    __device__ __forceinline__ float max(int64_t columns, F f, const T*... x) const {
        return reduce_row<Max>(*this, columns, f, x...);
    }

  private:
    __device__ __forceinline__ static int64_t column(int slot) {
        return static_cast<int64_t>(slot) * blockDim.x + static_cast<int64_t>(threadIdx.x) * kVector;
    }
};

// A block has a row of any length; nothing is kept, and slots have no meaning.
template <int kVector>
struct StreamLanes {
    mutable int place = 0;

    // f of kVector neighbouring columns, as a Pack; g of each Pack.
    template <typename F, typename G, typename... T>
    __device__ __forceinline__ void packs(int64_t columns, F f, G g, const T*... x) const {
        const int64_t step = static_cast<int64_t>(blockDim.x) * kVector;
#pragma unroll 4
        for (int64_t c = static_cast<int64_t>(threadIdx.x) * kVector; c < columns; c += step) {
            g(call_map<kVector>(f, c, 0, read<kVector>(x + c)...));
        }
    }
};

// In one walk (Milakov and Gimelshein, arXiv 1805.02867): a larger number scales what was summed before it.
template <int kVector, typename F, typename... T>
__device__ __forceinline__ Exponentials exponentials(const StreamLanes<kVector>& lanes, int64_t columns, F f,
                                                     const T*... x) {
    float own = kLowest, total = 0.0f;
    lanes.packs(
        columns, f,
        [&](const Pack<kVector>& values) {
            float most = values.at[0];
#pragma unroll
            for (int i = 1; i < kVector; ++i) most = Max::of(most, values.at[i]);
            if (most > own) {
                total *= exponential(own - most);
                own = most;
            }
#pragma unroll
            for (int i = 0; i < kVector; ++i) total += exponential(values.at[i] - own);
        },
        x...);
    const float largest = reduce_block<Max>(own, lanes.place);
    return {largest, reduce_block<Sum>(total * exponential(own - largest), lanes.place)};
}

// A thread has kVector columns of every row that it is given; a row has no sum.
template <int kVector>
struct ColumnLanes {
    template <typename Out, typename F, typename... T>
    __device__ __forceinline__ void map(int64_t columns, Out* out, F f, const T*... x) const {
        const int64_t c = first();
        if (c < columns) write<kVector>(out + c, call_map<kVector>(f, c, 0, read<kVector>(x + c)...));
    }

    template <typename F, typename... T>
    __device__ __forceinline__ void each(int64_t columns, F f, const T*... x) const {
        const int64_t c = first();
        if (c < columns) call_each<kVector>(f, c, 0, read<kVector>(x + c)...);
    }

    __device__ __forceinline__ static int64_t first() {
        return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVector;
    }
};

}  // namespace megatron

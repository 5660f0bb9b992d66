// Launching kernels: sizes of blocks and grids, checks, error codes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda_kernels.h"
#include "cuda_lanes.h"

namespace megatron {

enum LaunchError : int { kTooManyColumns = -1 };

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, int64_t threads, void* stream, Arguments... arguments) {
    // A reference would be an address of the host's memory.
    static_assert((std::is_trivially_copyable_v<Parameters> && ...));
    if (grid.x == 0 || grid.y == 0) return 0;
#ifdef MEGATRON_EMULATED_CUDA
    (void)stream;
    return emulated::run(grid, static_cast<unsigned>(threads), [=] { kernel(arguments...); });
#else
    kernel<<<grid, static_cast<unsigned>(threads), 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
    return static_cast<int>(cudaGetLastError());
#endif
}

// Elements that are read and written at a time: 16 bytes, if rows of `columns` and all pointers (null: none) allow it.
template <typename T, typename... P>
bool is_aligned(int64_t columns, const P*... pointers) {
    if (columns % (16 / static_cast<int64_t>(sizeof(T))) != 0) return false;
    return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// f(integral constant kVector, ...) for the elements of T at a time.
template <typename T, typename F>
int with_vector(bool aligned, F f) {
    if (aligned) return f(std::integral_constant<int, 16 / static_cast<int>(sizeof(T))>());
    return f(std::integral_constant<int, 1>());
}

// Threads of a block that has a row in registers, whole warps.
inline int64_t row_threads(int64_t columns) { return std::max<int64_t>((columns + kSlots - 1) / kSlots + 31, 32) / 32 * 32; }

// A grid has no more blocks than this in a direction; with fewer blocks than rows a block takes several.
constexpr unsigned kMostBlocks = 65535;

inline unsigned row_blocks(int64_t rows) { return static_cast<unsigned>(std::min<int64_t>(rows, kMostBlocks)); }

constexpr int64_t kColumnThreads = 128, kColumnRows = 4;

// Blocks of ColumnLanes below each other: each has some rows, so that it reads a bias once for several.
inline unsigned column_rows(int64_t rows) { return row_blocks((rows + kColumnRows - 1) / kColumnRows); }

// Blocks of ColumnLanes beside each other.
inline unsigned column_blocks(int64_t columns, int vector) {
    const int64_t a_block = kColumnThreads * vector;
    return static_cast<unsigned>((columns + a_block - 1) / a_block);
}

// into[i] [columns] += sums over parts of workspace [parts, sums, columns]; into[i] null: left out.
struct PartSums {
    const float* workspace;
    int64_t parts, sums, columns;
    float* into[3];
};

int sum_parts(const PartSums& a, void* stream);

}  // namespace megatron

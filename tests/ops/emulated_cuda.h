// CUDA's execution model on one CPU thread, to test kernels where there is no GPU: blocks run one after the other, and
// the threads of a block are fibers that take turns at barriers and shuffles. Only what the kernels use is here.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

using cudaError_t = int;
inline const char* cudaGetErrorString(cudaError_t) { return "threads of a block wait for each other without end"; }

inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return 0;
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

constexpr int kDeadlock = 719;
constexpr size_t kStack = 128 * 1024;

struct Barrier {
    unsigned waiting = 0, generation = 0;
};

struct Fiber {
    ucontext_t context;
    bool finished = false;
};

struct Block {
    std::vector<Fiber> fibers;
    ucontext_t scheduler;
    unsigned current = 0;
    bool progress = false;
    Barrier of_block;
    std::vector<Barrier> of_warps;
    std::vector<double> exchanged;  // a value a thread
    const std::function<void()>* kernel = nullptr;
};

inline Block* block = nullptr;

// Until all members are here. Threads that have ended are members, too: to leave before a barrier is an error.
inline void wait(Barrier& barrier, unsigned members) {
    if (++barrier.waiting == members) {
        barrier.waiting = 0;
        ++barrier.generation;
        block->progress = true;
        return;
    }
    const unsigned generation = barrier.generation;
    while (barrier.generation == generation) swapcontext(&block->fibers[block->current].context, &block->scheduler);
}

inline void enter() {
    (*block->kernel)();
    block->fibers[block->current].finished = block->progress = true;
}

inline char* stacks(size_t bytes) {  // kept: a test starts many blocks
    static char* kept = nullptr;
    static size_t size = 0;
    if (size < bytes) {
        kept = static_cast<char*>(
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        size = bytes;
    }
    return kept;
}

inline int run_block(unsigned threads, const std::function<void()>& kernel) {
    Block own;
    own.fibers.resize(threads);
    own.of_warps.resize((threads + 31) / 32);
    own.exchanged.resize(threads);
    own.kernel = &kernel;
    block = &own;
    char* memory = stacks(threads * kStack);
    for (unsigned i = 0; i < threads; ++i) {
        getcontext(&own.fibers[i].context);
        own.fibers[i].context.uc_stack.ss_sp = memory + i * kStack;
        own.fibers[i].context.uc_stack.ss_size = kStack;
        own.fibers[i].context.uc_link = &own.scheduler;
        makecontext(&own.fibers[i].context, enter, 0);
    }
    for (unsigned finished = 0; finished < threads;) {
        own.progress = false;
        finished = 0;
        for (unsigned i = 0; i < threads; ++i) {
            if (!own.fibers[i].finished) {
                own.current = threadIdx.x = i;
                swapcontext(&own.scheduler, &own.fibers[i].context);
            }
            finished += own.fibers[i].finished;
        }
        if (!own.progress) return kDeadlock;
    }
    return 0;
}

inline int run(dim3 grid, unsigned threads, const std::function<void()>& kernel) {
    gridDim = grid;
    blockDim = dim3(threads);
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y);
            if (const int code = run_block(threads, kernel); code != 0) return code;
        }
    }
    return 0;
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::block->of_block, blockDim.x); }

// Every lane of the warp takes part, as the mask of the kernels says.
template <typename T>
T __shfl_xor_sync(unsigned, T x, int lane) {
    emulated::Block& block = *emulated::block;
    const unsigned own = threadIdx.x, warp = own / 32;
    emulated::Barrier& barrier = block.of_warps[warp];
    block.exchanged[own] = static_cast<double>(x);
    emulated::wait(barrier, 32);
    const T received = static_cast<T>(block.exchanged[own ^ static_cast<unsigned>(lane)]);
    emulated::wait(barrier, 32);
    return received;
}

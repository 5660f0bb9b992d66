// One head of one sample, as each compilation of the attention kernel sees it, and the memory that it works in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "keep.h"

namespace megatron {

struct AttentionTask {
    int64_t tokens;                           // of the sample: queries and keys
    int64_t sequence;                         // with padding
    int64_t size;                             // of a head
    int64_t qkv_stride, context_stride;       // elements from one token to the next
    const void* qkv;                          // query, key and value of the first token, one behind the other
    const void* context_gradient;             // backward only
    void* output;                             // context, or the gradient of qkv
    DropoutSite dropout;                      // a key for each query, or null
};

// Memory that stays with its thread, as fresh pages for every call would cost more than the arithmetic of a short one.
class Buffer {
  public:
    // At least `count` 32-bit words, aligned for vectors; what was in them is lost when they grow.
    template <typename T>
    T* words(int64_t count) {
        static_assert(sizeof(T) == 4);
        const auto bytes = (static_cast<size_t>(count) * 4 + 4095) / 4096 * 4096;
        if (bytes > bytes_) {
            data_.reset();
            bytes_ = 0;
            data_.reset(std::aligned_alloc(4096, bytes));
            if (data_ == nullptr) throw std::bad_alloc();
            bytes_ = bytes;
        }
        return static_cast<T*>(data_.get());
    }

  private:
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> data_;
    size_t bytes_ = 0;
};

struct AttentionScratch {
    Buffer rows, panels;                                           // of queries, keys, values or gradients
    Buffer keys_across, values_across, key_panels, value_panels;   // of all keys
    Buffer scores, gradients, probabilities, gradient_halves, gradient_pairs;  // of a block
    Buffer result, key_sums, value_sums;
};

using AttentionFunction = void (*)(const AttentionTask&, AttentionScratch&);

// The kernel for one instruction set.
struct AttentionKernel {
    const char* target;
    AttentionFunction forward_float, backward_float, forward_bfloat16, backward_bfloat16;
};

// Those that this machine can run, the fastest first.
const std::vector<AttentionKernel>& attention_kernels();

}  // namespace megatron

// Multi-head attention with dropout on the CPU, forward and backward, without a matrix of size sequence x sequence.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "keep.h"
#include "portable.h"

namespace megatron {

// What both directions read. qkv: contiguous [sequence, batch, heads, 3, size] of `dtype`; lengths: [batch] or null,
// the tokens of each sample: those beyond attend to nothing and are not attended; dropout: its keys are [batch * heads *
// sequence] or null (none), masks as `dropout` gives for probabilities [batch * heads * sequence, sequence].
struct AttentionInputs {
    const void* qkv;
    DType dtype;
    int64_t sequence, batch, heads, size;
    const int64_t* lengths;
    DropoutSite dropout;
};

// context: [sequence, batch, heads * size], written everywhere, 0 beyond the length of a sample.
// A (sample, head) gives the same bits for any number of threads, in any batch, and with any padding.
// target: one of attention_targets(). Throws std::invalid_argument for another one.
void attention_forward(const AttentionInputs& inputs, void* context, const std::string& target, int threads);

// qkv_gradient: as qkv, written everywhere. Scores and masks are computed again, block by block of queries.
void attention_backward(const AttentionInputs& inputs, const void* context_gradient, void* qkv_gradient,
                        const std::string& target, int threads);

// The instruction sets of this machine for which the kernel is compiled, the fastest first.
std::vector<std::string> attention_targets();

}  // namespace megatron

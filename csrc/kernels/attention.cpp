#include "attention.h"

#include <algorithm>
#include <stdexcept>

#include "attention_task.h"

namespace megatron {
namespace {

const AttentionKernel& kernel_of(const std::string& target) {
    for (const AttentionKernel& kernel : attention_kernels()) {
        if (kernel.target == target) return kernel;
    }
    throw std::invalid_argument("attention: this machine has no kernel '" + target + "'");
}

const char* offset(const void* base, int64_t elements, DType dtype) {
    return static_cast<const char*>(base) + elements * (dtype == DType::float32 ? 4 : 2);
}

// Calls `function` for every head of every sample. context_gradient: null in the forward, whose output is the context.
void run(const AttentionInputs& inputs, const void* context_gradient, void* output, AttentionFunction function,
         int threads) {
    const auto& [qkv, dtype, sequence, batch, heads, size, lengths, dropout] = inputs;
    const int64_t tasks = batch * heads, context_width = size, qkv_width = 3 * size;
    const int64_t output_width = context_gradient == nullptr ? context_width : qkv_width;
    (void)threads;  // unused where OpenMP is not available
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t i = 0; i < tasks; ++i) {
        thread_local AttentionScratch scratch;
        AttentionTask task;
        task.tokens = lengths == nullptr ? sequence : std::clamp<int64_t>(lengths[i / heads], 0, sequence);
        task.sequence = sequence;
        task.size = size;
        task.qkv_stride = tasks * qkv_width;
        task.context_stride = tasks * context_width;
        task.qkv = offset(qkv, i * qkv_width, dtype);
        task.context_gradient =
            context_gradient == nullptr ? nullptr : offset(context_gradient, i * context_width, dtype);
        task.output = const_cast<char*>(offset(output, i * output_width, dtype));
        task.dropout = dropout;
        if (dropout.keys != nullptr) task.dropout.keys += i * sequence;
        function(task, scratch);
    }
}

}  // namespace

void attention_forward(const AttentionInputs& inputs, void* context, const std::string& target, int threads) {
    const AttentionKernel& kernel = kernel_of(target);
    run(inputs, nullptr, context, inputs.dtype == DType::float32 ? kernel.forward_float : kernel.forward_bfloat16,
        threads);
}

void attention_backward(const AttentionInputs& inputs, const void* context_gradient, void* qkv_gradient,
                        const std::string& target, int threads) {
    const AttentionKernel& kernel = kernel_of(target);
    run(inputs, context_gradient, qkv_gradient,
        inputs.dtype == DType::float32 ? kernel.backward_float : kernel.backward_bfloat16, threads);
}

std::vector<std::string> attention_targets() {
    std::vector<std::string> targets;
    for (const AttentionKernel& kernel : attention_kernels()) targets.emplace_back(kernel.target);
    return targets;
}

}  // namespace megatron

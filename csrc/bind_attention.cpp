// The part of megatron._C that computes attention.
#include "bind_attention.h"

#include <pybind11/stl.h>

#include <string>

#include "kernels/attention.h"

namespace py = pybind11;

namespace megatron {
namespace {

AttentionInputs inputs_of(uintptr_t qkv, int dtype, int64_t sequence, int64_t batch, int64_t heads, int64_t size,
                          uintptr_t lengths, uintptr_t keys, uint64_t site_key, double probability, int threads) {
    if (sequence < 0 || batch < 0 || heads < 0 || size < 1 || threads < 1) {
        throw py::value_error("attention: negative size or no thread");
    }
    if (!(probability >= 0.0 && probability < 1.0)) throw py::value_error("attention: probability must be in [0, 1)");
    if (dtype != 0 && dtype != 1) throw py::value_error("attention: dtype must be 0 (fp32) or 1 (bf16)");
    return {reinterpret_cast<const void*>(qkv),
            static_cast<DType>(dtype),
            sequence,
            batch,
            heads,
            size,
            reinterpret_cast<const int64_t*>(lengths),
            reinterpret_cast<const uint64_t*>(keys),
            site_key,
            probability};
}

}  // namespace

void bind_attention(py::module_& m) {
    m.attr("attention_targets") = attention_targets();
    m.def(
        "attention_forward",
        [](uintptr_t qkv, uintptr_t context, int dtype, int64_t sequence, int64_t batch, int64_t heads, int64_t size,
           uintptr_t lengths, uintptr_t keys, uint64_t site_key, double probability, const std::string& target,
           int threads) {
            const AttentionInputs inputs = inputs_of(qkv, dtype, sequence, batch, heads, size, lengths, keys, site_key,
                                                     probability, threads);
            py::gil_scoped_release release;
            attention_forward(inputs, reinterpret_cast<void*>(context), target, threads);
        },
        py::arg("qkv_ptr"), py::arg("context_ptr"), py::arg("dtype_code"), py::arg("sequence"), py::arg("batch"),
        py::arg("heads"), py::arg("size"), py::arg("lengths_ptr"), py::arg("keys_ptr"), py::arg("site_key"),
        py::arg("probability"), py::arg("target"), py::arg("threads"),
        "Attention with counter-hash dropout of contiguous qkv [sequence, batch, heads, 3, size] at raw addresses "
        "(dtype_code 0 fp32, 1 bf16; lengths int64 [batch] or 0; keys [batch * heads * sequence] or 0) to context "
        "[sequence, batch, heads * size]. target: one of attention_targets.");
    m.def(
        "attention_backward",
        [](uintptr_t qkv, uintptr_t context_gradient, uintptr_t qkv_gradient, int dtype, int64_t sequence,
           int64_t batch, int64_t heads, int64_t size, uintptr_t lengths, uintptr_t keys, uint64_t site_key,
           double probability, const std::string& target, int threads) {
            const AttentionInputs inputs = inputs_of(qkv, dtype, sequence, batch, heads, size, lengths, keys, site_key,
                                                     probability, threads);
            py::gil_scoped_release release;
            attention_backward(inputs, reinterpret_cast<const void*>(context_gradient),
                               reinterpret_cast<void*>(qkv_gradient), target, threads);
        },
        py::arg("qkv_ptr"), py::arg("context_gradient_ptr"), py::arg("qkv_gradient_ptr"), py::arg("dtype_code"),
        py::arg("sequence"), py::arg("batch"), py::arg("heads"), py::arg("size"), py::arg("lengths_ptr"),
        py::arg("keys_ptr"), py::arg("site_key"), py::arg("probability"), py::arg("target"), py::arg("threads"),
        "The gradient of qkv, contiguous, from that of the context; other arguments as in attention_forward.");
}

}  // namespace megatron

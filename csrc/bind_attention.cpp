// The part of megatron._C that computes attention.
#include "bind_attention.h"

#include <pybind11/stl.h>

#include <string>

#include "bind_arguments.h"
#include "kernels/attention.h"

namespace py = pybind11;

namespace megatron {
namespace {

AttentionInputs inputs_of(uintptr_t qkv, int64_t sequence, int64_t batch, int64_t heads, int64_t size,
                          uintptr_t lengths, uintptr_t keys, int64_t site_key, double probability, int dtype,
                          int threads) {
    if (sequence < 0 || batch < 0) throw py::value_error("attention: a size is negative");
    check(heads, size, threads);
    return {at<const void>(qkv), format(dtype), sequence,
            batch,               heads,         size,
            at<const int64_t>(lengths), site(keys, site_key, probability)};
}

void call_forward(uintptr_t qkv, uintptr_t context, int64_t sequence, int64_t batch, int64_t heads, int64_t size,
                  uintptr_t lengths, uintptr_t keys, int64_t site_key, double probability, const std::string& target,
                  int dtype, int threads) {
    const AttentionInputs inputs =
        inputs_of(qkv, sequence, batch, heads, size, lengths, keys, site_key, probability, dtype, threads);
    py::gil_scoped_release release;
    attention_forward(inputs, at<void>(context), target, threads);
}

void call_backward(uintptr_t qkv, uintptr_t of_context, uintptr_t of_qkv, int64_t sequence, int64_t batch,
                   int64_t heads, int64_t size, uintptr_t lengths, uintptr_t keys, int64_t site_key,
                   double probability, const std::string& target, int dtype, int threads) {
    const AttentionInputs inputs =
        inputs_of(qkv, sequence, batch, heads, size, lengths, keys, site_key, probability, dtype, threads);
    py::gil_scoped_release release;
    attention_backward(inputs, at<const void>(of_context), at<void>(of_qkv), target, threads);
}

}  // namespace

void bind_attention(py::module_& m) {
    m.attr("attention_targets") = attention_targets();
    m.def("attention", &call_forward, py::arg("qkv"), py::arg("context"), py::arg("sequence"), py::arg("batch"),
          py::arg("heads"), py::arg("size"), py::arg("lengths"), py::arg("keys"), py::arg("site_key"),
          py::arg("probability"), py::arg("target"), py::arg("dtype_code"), py::arg("threads"),
          "Attention with counter-hash dropout of contiguous qkv [sequence, batch, heads, 3, size] (lengths: int64 "
          "[batch] or 0; keys: [batch * heads * sequence] or 0) to context [sequence, batch, heads * size]. target: "
          "one of attention_targets.");
    m.def("attention_gradients", &call_backward, py::arg("qkv"), py::arg("of_context"), py::arg("of_qkv"),
          py::arg("sequence"), py::arg("batch"), py::arg("heads"), py::arg("size"), py::arg("lengths"),
          py::arg("keys"), py::arg("site_key"), py::arg("probability"), py::arg("target"), py::arg("dtype_code"),
          py::arg("threads"), "The gradient of qkv from that of the context; other arguments as in attention.");
}

}  // namespace megatron

// The Python module megatron._C: checks of arguments here, work in the other files.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "bind_attention.h"
#include "bind_kernels.h"
#include "bind_samples.h"
#include "bind_text.h"
#include "memory.h"
#include "shared_group.h"

namespace py = pybind11;

namespace megatron {
namespace {

Element to_element(int code) {
    if (code < 0 || code > 3) throw py::value_error("dtype must be 0 (fp32), 1 (bf16), 2 (fp64) or 3 (int64)");
    return static_cast<Element>(code);
}

Reduction to_reduction(int code) {
    if (code < 0 || code > 2) throw py::value_error("operation must be 0 (sum), 1 (max) or 2 (min)");
    return static_cast<Reduction>(code);
}

// Python's signal handlers run while a thread waits in C++; what they raise ends the wait.
void check_signals() {
    py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void check_length(int64_t length) {
    if (length < 0) throw py::value_error("SharedGroup: negative length");
}

}  // namespace
}  // namespace megatron

PYBIND11_MODULE(_C, m) {
    using namespace megatron;
    bind_text(m);
    m.doc() = "Compiled helpers: sample index, batch assembly, blending, fused operations. Checked wrappers are in megatron.";
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("keep_memory", &keep_memory,
          "Keep freed memory in the process instead of giving it back to the system. False where that cannot be asked.");
    bind_kernels(m);
    bind_samples(m);
    bind_attention(m);

    py::class_<SharedGroup>(m, "SharedGroup",
                            "Collective operations between processes of one host through shared memory, at addresses. "
                            "dtype_code: 0 fp32, 1 bf16, 2 fp64, 3 int64; operation_code: 0 sum, 1 max, 2 min.")
        .def(py::init([](const std::string& name, int rank, int size, int64_t slot_bytes, bool create,
                         double timeout_seconds) {
                 return std::make_unique<SharedGroup>(name, rank, size, slot_bytes, create, timeout_seconds,
                                                      check_signals);
             }),
             py::arg("name"), py::arg("rank"), py::arg("size"), py::arg("slot_bytes"), py::arg("create"),
             py::kw_only(), py::arg("timeout_seconds"))
        .def_property_readonly("rank", &SharedGroup::rank)
        .def_property_readonly("size", &SharedGroup::size)
        .def(
            "all_reduce",
            [](SharedGroup& group, uintptr_t address, int64_t count, int dtype, int operation) {
                check_length(count);
                const auto element = to_element(dtype);
                const auto reduction = to_reduction(operation);
                py::gil_scoped_release release;
                group.all_reduce(reinterpret_cast<void*>(address), count, element, reduction);
            },
            py::arg("address"), py::arg("count"), py::arg("dtype_code"), py::arg("operation_code") = 0,
            "In place, in order of rank, the same bits on every member; bf16 is added in fp32 and rounded once.")
        .def(
            "reduce_scatter",
            [](SharedGroup& group, uintptr_t in, uintptr_t out, int64_t count, int dtype, int operation) {
                check_length(count);
                const auto element = to_element(dtype);
                const auto reduction = to_reduction(operation);
                py::gil_scoped_release release;
                group.reduce_scatter(reinterpret_cast<const void*>(in), reinterpret_cast<void*>(out), count, element,
                                     reduction);
            },
            py::arg("in_address"), py::arg("out_address"), py::arg("count_out"), py::arg("dtype_code"),
            py::arg("operation_code") = 0,
            "in: size * count_out elements; out: count_out elements, may be this member's part of `in`.")
        .def(
            "all_gather",
            [](SharedGroup& group, uintptr_t in, uintptr_t out, int64_t bytes) {
                check_length(bytes);
                py::gil_scoped_release release;
                group.all_gather(reinterpret_cast<const void*>(in), reinterpret_cast<void*>(out), bytes);
            },
            py::arg("in_address"), py::arg("out_address"), py::arg("bytes"),
            "in: `bytes`; out: size * bytes; `in` may be this member's part of `out`.")
        .def("barrier", &SharedGroup::barrier, py::call_guard<py::gil_scoped_release>());
}

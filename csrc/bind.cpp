// The Python module megatron._C: checks of arguments here, work in the other files.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "dropout.h"

namespace py = pybind11;

namespace megatron {
namespace {

void dropout_from_addresses(uintptr_t x, uintptr_t y, int64_t rows, int64_t cols, uintptr_t keys, uint64_t site_key,
                            uint32_t column_offset, double probability, int dtype, int threads) {
    if (rows < 0 || cols < 0 || threads < 1) throw py::value_error("dropout: negative size or no thread");
    if (!(probability >= 0.0 && probability < 1.0)) throw py::value_error("dropout: probability must be in [0, 1)");
    if (dtype != 0 && dtype != 1) throw py::value_error("dropout: dtype must be 0 (fp32) or 1 (bf16)");
    py::gil_scoped_release release;
    dropout(reinterpret_cast<const void*>(x), reinterpret_cast<void*>(y), rows, cols,
            reinterpret_cast<const uint64_t*>(keys), site_key, column_offset, probability, static_cast<DType>(dtype),
            threads);
}

}  // namespace
}  // namespace megatron

PYBIND11_MODULE(_C, m) {
    using namespace megatron;
    m.doc() = "Compiled helpers: sample index, batch assembly, blending, dropout.";
    m.def("dropout", &dropout_from_addresses, py::arg("x_ptr"), py::arg("y_ptr"), py::arg("rows"), py::arg("cols"),
          py::arg("keys_ptr"), py::arg("site_key"), py::arg("column_offset"), py::arg("probability"),
          py::arg("dtype_code"), py::arg("threads") = 1,
          "Counter-hash dropout over row-major [rows, cols] at raw addresses (dtype_code 0 fp32, 1 bf16; y may be x): "
          "keep ? x / (1 - p) : 0 with one 64-bit key a row.");
}

#pragma once

#include <pybind11/pybind11.h>

namespace megatron {

// Adds the fused operations to the module.
void bind_kernels(pybind11::module_& m);

}  // namespace megatron

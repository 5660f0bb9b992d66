#pragma once

#include <pybind11/pybind11.h>

namespace megatron {

// Adds attention to the module.
void bind_attention(pybind11::module_& m);

}  // namespace megatron

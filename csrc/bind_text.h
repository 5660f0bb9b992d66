#pragma once

#include <pybind11/pybind11.h>

namespace megatron {

// Adds what turns text into ids and words to the module.
void bind_text(pybind11::module_& m);

}  // namespace megatron

// The part of megatron._C that makes samples and batches.
#pragma once

#include <pybind11/pybind11.h>

namespace megatron {

void bind_samples(pybind11::module_& m);

}  // namespace megatron

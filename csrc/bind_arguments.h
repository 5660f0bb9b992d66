// What the bindings of computations on tensors share: tensors come by address (0: none). Shapes, strides and number
// formats are checked in megatron/ops; here only what would make the arithmetic undefined.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "cuda_library.h"
#include "kernels/keep.h"
#include "kernels/portable.h"

namespace megatron {

template <typename T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline void check(int64_t rows, int64_t columns) {
    if (rows < 0 || columns < 1) throw pybind11::value_error("a size is negative, or a row is empty");
}

// Where to compute: on so many threads of the CPU, or, with 0 of them, on a CUDA stream.
using Place = std::pair<int, uintptr_t>;

template <typename Cpu, typename Cuda>
void compute(const Place& place, Cpu on_threads, Cuda on_stream) {
    if (place.first > 0) {
        on_threads(place.first);
    } else {
        check_launch(on_stream(at<void>(place.second)));
    }
}

inline void check(int64_t rows, int64_t columns, int threads) {
    check(rows, columns);
    if (threads < 1) throw pybind11::value_error("at least one thread is needed");
}

inline DType format(int code) {
    if (code != 0 && code != 1) throw pybind11::value_error("dtype_code must be 0 (fp32) or 1 (bf16)");
    return static_cast<DType>(code);
}

// keys: one of 64 bits a row. site_key: the 64 bits of an unsigned number, as torch's int64 has them.
inline DropoutSite site(uintptr_t keys, int64_t site_key, double probability) {
    if (!(probability >= 0.0 && probability < 1.0)) {
        throw pybind11::value_error("dropout: probability must be in [0, 1)");
    }
    return dropout_site(at<const uint64_t>(keys), static_cast<uint64_t>(site_key), probability);
}

}  // namespace megatron

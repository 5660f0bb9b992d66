#include "cuda_library.h"

#include <dlfcn.h>

#include <stdexcept>

namespace megatron {
namespace {

const CudaKernels* loaded = nullptr;

}  // namespace

void load_cuda_kernels(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open: kernels may run until the end
    if (library == nullptr) throw std::runtime_error(dlerror());
    const auto find = reinterpret_cast<const CudaKernels* (*)()>(dlsym(library, "megatron_cuda_kernels"));
    if (find == nullptr) throw std::runtime_error(path + " is not a library of the kernels");
    const CudaKernels* found = find();
    if (found->version != kCudaKernelsVersion) throw std::runtime_error(path + " is of another version: build it again");
    if (const int code = found->usable(); code != 0) throw std::runtime_error(path + ": " + found->message(code));
    loaded = found;
}

const CudaKernels& cuda_kernels() {
    if (loaded == nullptr) throw std::runtime_error("no CUDA kernels are loaded");
    return *loaded;
}

void check_launch(int code) {
    if (code != 0) throw std::runtime_error(std::string("CUDA kernel: ") + cuda_kernels().message(code));
}

}  // namespace megatron

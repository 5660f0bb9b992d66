#include "cuda_launch.h"
#include "cuda_launchers.h"

namespace megatron {
namespace {

template <Activation kind, int kVector, typename T>
__global__ void __launch_bounds__(kColumnThreads) forward_kernel(const BiasActivation<T> a) {
    for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
        bias_activation_row<kind>(ColumnLanes<kVector>(), a, row);
    }
}

template <Activation kind, int kVector, typename T>
__global__ void __launch_bounds__(kColumnThreads)
    backward_kernel(const BiasActivationGradients<T> a, float* workspace) {
    const ColumnLanes<kVector> lanes;
    float of_bias[kVector] = {};
    for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
        bias_activation_gradient_row<kind>(lanes, a, row, of_bias);
    }
    store(lanes, a.columns, workspace + blockIdx.y * a.columns, of_bias);
}

// f(integral constant kind) for an activation.
template <typename F>
int with_activation(Activation kind, F f) {
    switch (kind) {
        case Activation::gelu: return f(std::integral_constant<Activation, Activation::gelu>());
        case Activation::gelu_tanh: return f(std::integral_constant<Activation, Activation::gelu_tanh>());
        default: return f(std::integral_constant<Activation, Activation::relu>());
    }
}

}  // namespace

template <typename T>
int cuda_bias_activation(const BiasActivation<T>& a, Activation activation, void* stream) {
    return with_activation(activation, [&](auto kind) {
        return with_vector<T>(is_aligned<T>(a.columns, a.x, a.bias, a.y), [&](auto vector) {
            const dim3 grid(column_blocks(a.columns, vector), column_rows(a.rows));
            return launch(forward_kernel<kind, vector, T>, grid, kColumnThreads, stream, a);
        });
    });
}

template <typename T>
int cuda_bias_activation_gradients(const BiasActivationGradients<T>& a, Activation activation, float* of_bias,
                                   float* workspace, void* stream) {
    const int64_t parts = parts_of(a.rows, a.columns);
    const int code = with_activation(activation, [&](auto kind) {
        const bool aligned = is_aligned<T>(a.columns, a.of_y, a.x, a.bias, a.of_x, workspace);
        return with_vector<T>(aligned, [&](auto vector) {
            const dim3 grid(column_blocks(a.columns, vector), static_cast<unsigned>(parts));
            return launch(backward_kernel<kind, vector, T>, grid, kColumnThreads, stream, a, workspace);
        });
    });
    return code != 0 ? code : sum_parts({workspace, parts, 1, a.columns, {of_bias}}, stream);
}

template int cuda_bias_activation(const BiasActivation<float>&, Activation, void*);
template int cuda_bias_activation(const BiasActivation<BFloat16>&, Activation, void*);
template int cuda_bias_activation_gradients(const BiasActivationGradients<float>&, Activation, float*, float*, void*);
template int cuda_bias_activation_gradients(const BiasActivationGradients<BFloat16>&, Activation, float*, float*,
                                            void*);

}  // namespace megatron

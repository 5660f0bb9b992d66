// The part of the Python module megatron._C that computes on rows of tensors.
#include "bind_kernels.h"

#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <vector>

#include "bind_arguments.h"
#include "kernels/launchers.h"

namespace py = pybind11;

namespace megatron {
namespace {

// f(T()) with the type of a number format's code.
template <typename F>
void with_format(int code, F f) {
    if (format(code) == DType::float32) {
        f(float());
    } else {
        f(BFloat16());
    }
}

template <typename T>
const CudaRows<T>& cuda();

template <>
const CudaRows<float>& cuda() {
    return cuda_kernels().in_float;
}

template <>
const CudaRows<BFloat16>& cuda() {
    return cuda_kernels().in_bfloat16;
}

Activation activation(int code) {
    if (code < 0 || code > 2) throw py::value_error("activation_code must be 0 (gelu), 1 (gelu_new) or 2 (relu)");
    return static_cast<Activation>(code);
}

void call_dropout(uintptr_t x, uintptr_t y, int64_t rows, int64_t columns, uintptr_t keys, int64_t site_key,
                  double probability, int dtype, const Place& place) {
    check(rows, columns);
    const DropoutSite kept = site(keys, site_key, probability);
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const Dropout<T> a{rows, columns, at<const T>(x), at<T>(y), kept};
        compute(
            place, [&](int threads) { dropout(a, threads); },
            [&](void* stream) { return cuda<T>().dropout(a, stream); });
    });
}

void check_tables(size_t tables) {
    if (tables < 1 || tables > kMostTables) throw py::value_error("embedding: from 1 to 4 tables");
}

void call_embedding(const std::vector<uintptr_t>& tables, const std::vector<int64_t>& sizes, uintptr_t ids,
                    uintptr_t out, int64_t rows, int64_t columns, int dtype, int threads) {
    check(rows, columns, threads);
    check_tables(tables.size());
    for (size_t table = 0; table < sizes.size(); ++table) {
        const int64_t* own = at<const int64_t>(ids) + static_cast<int64_t>(table) * rows;
        for (int64_t row = 0; row < rows; ++row) {
            if (own[row] >= sizes[table]) {
                throw py::index_error("embedding: id " + std::to_string(own[row]) + " in a table of " +
                                      std::to_string(sizes[table]) + " rows");
            }
        }
    }
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        Embedding<T> a{rows, columns, static_cast<int>(tables.size()), {}, at<const int64_t>(ids), at<T>(out)};
        for (size_t i = 0; i < tables.size(); ++i) a.table[i] = at<const T>(tables[i]);
        embedding(a, threads);
    });
}

void call_embedding_gradients(const std::vector<uintptr_t>& into, uintptr_t ids, uintptr_t gradient, int64_t rows,
                              int64_t columns, int dtype, int threads) {
    check(rows, columns, threads);
    check_tables(into.size());
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        EmbeddingGradients<T> a{rows, columns, static_cast<int>(into.size()), {}, at<const int64_t>(ids),
                                at<const T>(gradient)};
        for (size_t i = 0; i < into.size(); ++i) a.into[i] = at<float>(into[i]);
        embedding_gradients(a, threads);
    });
}

void call_add_norm(uintptr_t block, uintptr_t bias, uintptr_t residual, uintptr_t weight, uintptr_t shift,
                   uintptr_t sum, uintptr_t normalized, uintptr_t mean, uintptr_t rstd, int64_t rows, int64_t columns,
                   double epsilon, uintptr_t keys, int64_t site_key, double probability, int dtype, const Place& place) {
    check(rows, columns);
    const DropoutSite kept = site(keys, site_key, probability);
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const AddNorm<T> a{rows,
                           columns,
                           at<const T>(block),
                           at<const T>(bias),
                           at<const T>(residual),
                           at<const T>(weight),
                           at<const T>(shift),
                           static_cast<float>(epsilon),
                           kept,
                           at<T>(sum),
                           at<T>(normalized),
                           at<float>(mean),
                           at<float>(rstd)};
        py::gil_scoped_release release;
        compute(
            place, [&](int threads) { add_norm(a, threads); },
            [&](void* stream) { return cuda<T>().add_norm(a, stream); });
    });
}

void call_add_norm_gradients(uintptr_t of_sum, uintptr_t of_normalized, uintptr_t sum, uintptr_t weight, uintptr_t mean,
                             uintptr_t rstd, uintptr_t of_residual, uintptr_t of_block, uintptr_t of_bias,
                             uintptr_t of_weight, uintptr_t of_shift, uintptr_t workspace, int64_t rows, int64_t columns, uintptr_t keys,
                             int64_t site_key, double probability, int dtype, const Place& place) {
    check(rows, columns);
    const DropoutSite kept = site(keys, site_key, probability);
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const AddNormGradients<T> a{rows,
                                    columns,
                                    at<const T>(of_sum),
                                    at<const T>(of_normalized),
                                    at<const T>(sum),
                                    at<const T>(weight),
                                    at<const float>(mean),
                                    at<const float>(rstd),
                                    kept,
                                    at<T>(of_residual),
                                    at<T>(of_block)};
        py::gil_scoped_release release;
        const ColumnSums sums{at<float>(of_bias), at<float>(of_weight), at<float>(of_shift)};
        compute(
            place, [&](int threads) { add_norm_gradients(a, sums, threads); },
            [&](void* stream) { return cuda<T>().add_norm_gradients(a, sums, at<float>(workspace), stream); });
    });
}

void call_bias_activation(uintptr_t x, uintptr_t bias, uintptr_t y, int64_t rows, int64_t columns, int kind, int dtype,
                          const Place& place) {
    check(rows, columns);
    const Activation function = activation(kind);
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const BiasActivation<T> a{rows, columns, at<const T>(x), at<const T>(bias), at<T>(y)};
        compute(
            place, [&](int threads) { bias_activation(a, function, threads); },
            [&](void* stream) { return cuda<T>().bias_activation(a, function, stream); });
    });
}

void call_bias_activation_gradients(uintptr_t of_y, uintptr_t x, uintptr_t bias, uintptr_t of_x, uintptr_t of_bias,
                                    uintptr_t workspace,
                                    int64_t rows, int64_t columns, int kind, int dtype, const Place& place) {
    check(rows, columns);
    const Activation function = activation(kind);
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const BiasActivationGradients<T> a{rows,           columns,           at<const T>(of_y),
                                           at<const T>(x), at<const T>(bias), at<T>(of_x)};
        compute(
            place, [&](int threads) { bias_activation_gradients(a, function, at<float>(of_bias), threads); },
            [&](void* stream) { return cuda<T>().bias_activation_gradients(a, function, at<float>(of_bias), at<float>(workspace), stream); });
    });
}

void check_columns(int64_t valid, int64_t columns) {
    if (valid < 0 || valid > columns) throw py::value_error("cross_entropy: more columns than a row has");
}

void call_cross_entropy(uintptr_t logits, uintptr_t bias, uintptr_t labels, uintptr_t largest, uintptr_t total,
                        uintptr_t target, int64_t rows, int64_t columns, int64_t valid, int64_t start, int dtype,
                        const Place& place) {
    check(rows, columns);
    check_columns(valid, columns);
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const CrossEntropy<T> a{rows, columns, valid, start, at<T>(logits), at<const T>(bias), at<const int64_t>(labels)};
        const RowStatistics out{at<float>(largest), at<float>(total), at<float>(target)};
        compute(
            place, [&](int threads) { cross_entropy(a, out, threads); },
            [&](void* stream) { return cuda<T>().cross_entropy(a, out, stream); });
    });
}

void call_cross_entropy_gradients(uintptr_t logits, uintptr_t bias, uintptr_t labels, uintptr_t largest,
                                  uintptr_t total, uintptr_t factor, uintptr_t of_bias, uintptr_t workspace, int64_t rows, int64_t columns, int64_t valid,
                                  int64_t start, int dtype, const Place& place) {
    check(rows, columns);
    check_columns(valid, columns);
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const CrossEntropy<T> a{rows, columns, valid, start, at<T>(logits), at<const T>(bias), at<const int64_t>(labels)};
        const RowGradients given{at<const float>(largest), at<const float>(total), at<const float>(factor)};
        compute(
            place, [&](int threads) { cross_entropy_gradients(a, given, at<float>(of_bias), threads); },
            [&](void* stream) { return cuda<T>().cross_entropy_gradients(a, given, at<float>(of_bias), at<float>(workspace), stream); });
    });
}

void call_softmax(uintptr_t scores, uintptr_t lengths, uintptr_t probabilities, uintptr_t dropped, int64_t rows,
                  int64_t columns, int64_t sample_rows, double scale, uintptr_t keys, int64_t site_key,
                  double probability, int dtype, const Place& place) {
    check(rows, columns);
    if (sample_rows < 1) throw py::value_error("softmax: a sample has no rows");
    const DropoutSite kept = site(keys, site_key, probability);
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const Softmax<T> a{rows,
                           columns,
                           sample_rows,
                           at<const int64_t>(lengths),
                           at<const T>(scores),
                           static_cast<float>(scale),
                           kept,
                           at<T>(probabilities),
                           at<T>(dropped)};
        compute(
            place, [&](int threads) { softmax(a, threads); },
            [&](void* stream) { return cuda<T>().softmax(a, stream); });
    });
}

void call_softmax_gradients(uintptr_t of_dropped, uintptr_t probabilities, uintptr_t of_scores, int64_t rows,
                            int64_t columns, double scale, uintptr_t keys, int64_t site_key, double probability,
                            int dtype, const Place& place) {
    check(rows, columns);
    const DropoutSite kept = site(keys, site_key, probability);
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        const SoftmaxGradients<T> a{rows,
                                    columns,
                                    at<const T>(of_dropped),
                                    at<const T>(probabilities),
                                    static_cast<float>(scale),
                                    kept,
                                    at<T>(of_scores)};
        compute(
            place, [&](int threads) { softmax_gradients(a, threads); },
            [&](void* stream) { return cuda<T>().softmax_gradients(a, stream); });
    });
}

void call_add_rows(uintptr_t into, uintptr_t x, uintptr_t workspace, int64_t rows, int64_t columns, int dtype, const Place& place) {
    check(rows, columns);
    py::gil_scoped_release release;
    with_format(dtype, [&](auto t) {
        using T = decltype(t);
        compute(
            place, [&](int threads) { add_rows(at<float>(into), at<const T>(x), rows, columns, threads); },
            [&](void* stream) { return cuda<T>().add_rows(at<float>(into), at<const T>(x), rows, columns, at<float>(workspace), stream); });
    });
}

void call_adamw(uintptr_t weights, uintptr_t gradients, uintptr_t first, uintptr_t second, uintptr_t copy,
                int64_t count, double factor, double learning_rate, double decay, double beta1, double beta2,
                double epsilon, int64_t step, const Place& place) {
    check(count, 1);
    if (step < 1) throw py::value_error("adamw: steps count from 1");
    AdamW a;
    a.count = count;
    a.weights = at<float>(weights);
    a.gradients = at<const float>(gradients);
    a.first = at<float>(first);
    a.second = at<float>(second);
    a.copy = at<BFloat16>(copy);
    a.factor = static_cast<float>(factor);
    a.learning_rate = static_cast<float>(learning_rate);
    a.decay = static_cast<float>(decay);
    a.beta2 = static_cast<float>(beta2);
    a.rest1 = static_cast<float>(1.0 - beta1);
    a.rest2 = static_cast<float>(1.0 - beta2);
    a.epsilon = static_cast<float>(epsilon);
    a.correction1 = static_cast<float>(1.0 - std::pow(beta1, static_cast<double>(step)));
    a.correction2 = static_cast<float>(std::sqrt(1.0 - std::pow(beta2, static_cast<double>(step))));
    py::gil_scoped_release release;
    compute(
        place, [&](int threads) { adamw(a, threads); }, [&](void* stream) { return cuda_kernels().adamw(a, stream); });
}

// total: fp64 on the same device; workspace: on CUDA fp64 [most_parts].
void call_sum_of_squares(uintptr_t x, uintptr_t total, uintptr_t workspace, int64_t count, const Place& place) {
    check(count, 1);
    py::gil_scoped_release release;
    const float* values = at<const float>(x);
    compute(
        place, [&](int threads) { *at<double>(total) = sum_of_squares(values, count, threads); },
        [&](void* stream) {
            return cuda_kernels().sum_of_squares(values, count, at<double>(workspace), at<double>(total), stream);
        });
}

}  // namespace

void bind_kernels(py::module_& m) {
    m.attr("most_parts") = kMostParts;
    m.def("parts_of", &parts_of, py::arg("rows"), py::arg("columns"), "In how many parts a GPU takes sums over rows.");
    m.attr("most_columns") = kMostColumns;
    m.def("load_cuda_kernels", &load_cuda_kernels, py::arg("path"), "Make a library of CUDA kernels the one that is used.");
    m.def("dropout", &call_dropout, py::arg("x"), py::arg("y"), py::arg("rows"), py::arg("columns"), py::arg("keys"),
          py::arg("site_key"), py::arg("probability"), py::arg("dtype_code"), py::arg("place"),
          "Counter-hash dropout over row-major [rows, columns]; y may be x; keys: one of 64 bits a row.");
    m.def("embedding", &call_embedding, py::arg("tables"), py::arg("sizes"), py::arg("ids"), py::arg("out"),
          py::arg("rows"), py::arg("columns"), py::arg("dtype_code"), py::arg("threads"),
          "Sums of rows of 1 to 4 tables; ids: int64 [tables, rows], below zero for a row of zeros.");
    m.def("embedding_gradients", &call_embedding_gradients, py::arg("into"), py::arg("ids"), py::arg("gradient"),
          py::arg("rows"), py::arg("columns"), py::arg("dtype_code"), py::arg("threads"),
          "Rows of a gradient added to those rows of 1 to 4 fp32 arrays.");
    m.def("add_norm", &call_add_norm, py::arg("block"), py::arg("bias"), py::arg("residual"), py::arg("weight"),
          py::arg("shift"), py::arg("sum"), py::arg("normalized"), py::arg("mean"), py::arg("rstd"), py::arg("rows"),
          py::arg("columns"), py::arg("epsilon"), py::arg("keys"), py::arg("site_key"), py::arg("probability"),
          py::arg("dtype_code"), py::arg("place"),
          "sum = residual + dropout(block + bias), normalized = LayerNorm(sum); without a block or without a LayerNorm.");
    m.def("add_norm_gradients", &call_add_norm_gradients, py::arg("of_sum"), py::arg("of_normalized"), py::arg("sum"),
          py::arg("weight"), py::arg("mean"), py::arg("rstd"), py::arg("of_residual"), py::arg("of_block"),
          py::arg("of_bias"), py::arg("of_weight"), py::arg("of_shift"), py::arg("workspace"), py::arg("rows"), py::arg("columns"),
          py::arg("keys"), py::arg("site_key"), py::arg("probability"), py::arg("dtype_code"), py::arg("place"),
          "Gradients of add_norm; those of bias, weight and shift are added to fp32 arrays.");
    m.def("bias_activation", &call_bias_activation, py::arg("x"), py::arg("bias"), py::arg("y"), py::arg("rows"),
          py::arg("columns"), py::arg("activation_code"), py::arg("dtype_code"), py::arg("place"),
          "y = activation(x + bias).");
    m.def("bias_activation_gradients", &call_bias_activation_gradients, py::arg("of_y"), py::arg("x"), py::arg("bias"),
          py::arg("of_x"), py::arg("of_bias"), py::arg("workspace"), py::arg("rows"), py::arg("columns"), py::arg("activation_code"),
          py::arg("dtype_code"), py::arg("place"),
          "Gradients of bias_activation; that of the bias is added to an fp32 array.");
    m.def("cross_entropy", &call_cross_entropy, py::arg("logits"), py::arg("bias"), py::arg("labels"),
          py::arg("largest"), py::arg("total"), py::arg("target"), py::arg("rows"), py::arg("columns"),
          py::arg("valid"), py::arg("start"), py::arg("dtype_code"), py::arg("place"),
          "Of each row of logits + bias: the largest, the sum of exponentials relative to it, the label's logit.");
    m.def("cross_entropy_gradients", &call_cross_entropy_gradients, py::arg("logits"), py::arg("bias"),
          py::arg("labels"), py::arg("largest"), py::arg("total"), py::arg("factor"), py::arg("of_bias"), py::arg("workspace"), py::arg("rows"),
          py::arg("columns"), py::arg("valid"), py::arg("start"), py::arg("dtype_code"), py::arg("place"),
          "The gradient takes the place of the logits; that of the bias is added to an fp32 array.");
    m.def("softmax", &call_softmax, py::arg("scores"), py::arg("lengths"), py::arg("probabilities"),
          py::arg("dropped"), py::arg("rows"), py::arg("columns"), py::arg("sample_rows"), py::arg("scale"),
          py::arg("keys"), py::arg("site_key"), py::arg("probability"), py::arg("dtype_code"), py::arg("place"),
          "Softmax of scale * scores over the tokens of a sample, and the same after dropout.");
    m.def("softmax_gradients", &call_softmax_gradients, py::arg("of_dropped"), py::arg("probabilities"),
          py::arg("of_scores"), py::arg("rows"), py::arg("columns"), py::arg("scale"), py::arg("keys"),
          py::arg("site_key"), py::arg("probability"), py::arg("dtype_code"), py::arg("place"),
          "Gradients of the scores; of_scores may be of_dropped.");
    m.def("add_rows", &call_add_rows, py::arg("into"), py::arg("x"), py::arg("workspace"), py::arg("rows"), py::arg("columns"),
          py::arg("dtype_code"), py::arg("place"), "into, fp32 [columns], += the sum of the rows of x [rows, columns].");
    m.def("adamw", &call_adamw, py::arg("weights"), py::arg("gradients"), py::arg("first"), py::arg("second"),
          py::arg("copy"), py::arg("count"), py::arg("factor"), py::arg("learning_rate"), py::arg("decay"),
          py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"), py::arg("step"), py::arg("place"),
          "AdamW on flat fp32 arrays; gradients count times `factor`; copy: the weights in bf16.");
    m.def("sum_of_squares", &call_sum_of_squares, py::arg("x"), py::arg("total"), py::arg("workspace"),
          py::arg("count"), py::arg("place"), "Sum of squares of an fp32 array, to one fp64.");
}

}  // namespace megatron

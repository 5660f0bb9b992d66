// The Python module megatron._C: checks of arguments here, work in the other files.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "assembly.h"
#include "bind_text.h"
#include "blend.h"
#include "dropout.h"
#include "permutation.h"
#include "sample_index.h"
#include "shared_group.h"

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

// The address of a one-dimensional array without gaps, whatever its alignment.
const void* address(const py::array& array, py::ssize_t itemsize, const char* name) {
    if (array.ndim() != 1 || array.itemsize() != itemsize || (array.size() > 1 && array.strides(0) != itemsize)) {
        throw py::value_error(std::string(name) + ": a contiguous one-dimensional array of " +
                              std::to_string(itemsize) + "-byte elements is needed");
    }
    return array.data();
}

// An array that takes over a vector's memory.
template <typename T>
py::array_t<T> to_array(std::vector<T>&& values) {
    auto* owned = new std::vector<T>(std::move(values));
    const py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(static_cast<py::ssize_t>(owned->size()), owned->data(), owner);
}

py::array_t<int64_t> permute(uint64_t n, uint64_t key, const py::array_t<int64_t>& places) {
    if (n < 1) throw py::value_error("permute: n must be positive");
    const auto in = places.unchecked<1>();
    py::array_t<int64_t> result(in.shape(0));
    auto out = result.mutable_unchecked<1>();
    const Permutation permutation(n, key);
    for (py::ssize_t i = 0; i < in.shape(0); ++i) {
        if (in(i) < 0 || static_cast<uint64_t>(in(i)) >= n) throw py::value_error("permute: a place is not in [0, n)");
        out(i) = static_cast<int64_t>(permutation(static_cast<uint64_t>(in(i))));
    }
    return result;
}

py::tuple sample_index(const py::array& sizes, const py::array& document_index, std::pair<int64_t, int64_t> split_range,
                       uint64_t split_key, PieceRule pieces, std::pair<int64_t, int64_t> targets,
                       double short_probability, uint64_t key) {
    const Unaligned<int32_t> lengths(address(sizes, 4, "sizes"));
    const Unaligned<int64_t> documents(address(document_index, 8, "document_index"));
    const int64_t count = document_index.size() - 1;
    SampleIndex index;
    {
        py::gil_scoped_release release;
        index = build_sample_index(lengths, documents, count, {split_range.first, split_range.second, split_key},
                                   pieces, {targets.second, targets.first, short_probability, key});
    }
    // As raw int64 pairs: NumPy views them as rows.
    const auto rows = static_cast<py::ssize_t>(index.rows.size());
    auto* owned = new std::vector<SampleRow>(std::move(index.rows));
    const py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<SampleRow>*>(p); });
    py::array_t<int64_t> array(rows * 2, reinterpret_cast<const int64_t*>(owned->data()), owner);
    return py::make_tuple(array, index.documents, index.short_documents);
}

uint64_t checksum_of(const py::array& rows) {
    const auto* data = static_cast<const SampleRow*>(address(rows, sizeof(SampleRow), "rows"));
    py::gil_scoped_release release;
    return checksum(data, rows.size());
}

// Blend for Python.
py::tuple blend_assign(Blend& blend, int64_t first, int64_t count) {
    if (first < 0 || count < 0) throw py::value_error("blend: negative sample number");
    py::array_t<int32_t> corpora(count);
    py::array_t<int64_t> numbers(count);
    {
        py::gil_scoped_release release;
        blend.assign(first, count, corpora.mutable_data(), numbers.mutable_data());
    }
    return py::make_tuple(corpora, numbers);
}

// Assembler for Python: keeps the arrays alive whose addresses it uses.
class ArrayAssembler {
  public:
    ArrayAssembler(const py::list& sources, std::vector<double> weights, AssemblyRule rule) : width_(rule.seq_length) {
        std::vector<SampleSource> addresses;
        for (const py::handle& item : sources) {
            const auto [tokens, type, sizes, pointers, words, rows, key] =
                item.cast<std::tuple<py::array, int, py::array, py::array, std::optional<py::array>, py::array,
                                     uint64_t>>();
            addresses.push_back({address(tokens, tokens.itemsize(), "tokens"), static_cast<TokenType>(type),
                                 Unaligned<int32_t>(address(sizes, 4, "sizes")),
                                 Unaligned<int64_t>(address(pointers, 8, "pointers")),
                                 words ? static_cast<const uint8_t*>(address(*words, 1, "words")) : nullptr,
                                 sizes.size(), static_cast<const SampleRow*>(address(rows, sizeof(SampleRow), "rows")),
                                 rows.size(), key});
            if (rows.size() == 0) throw py::value_error("a corpus without samples");
        }
        if (addresses.empty() || addresses.size() != weights.size()) throw py::value_error("a weight for each corpus");
        assembler_ = std::make_unique<Assembler>(std::move(addresses), std::move(weights), std::move(rule));
        sources_ = py::tuple(sources);
    }

    py::tuple assemble(int64_t first, int64_t count) {
        if (first < 0 || count < 0) throw py::value_error("assemble: negative sample number");
        py::array_t<int64_t> tokens({count, width_}), types({count, width_}), lengths(count), labels(count);
        BatchArrays batch{tokens.mutable_data(), types.mutable_data(), lengths.mutable_data(), labels.mutable_data(),
                          {}, {}};
        {
            py::gil_scoped_release release;
            assembler_->assemble(first, count, batch);
        }
        return py::make_tuple(tokens, types, lengths, to_array(std::move(batch.masked_positions)),
                              to_array(std::move(batch.masked_labels)), labels);
    }

    std::pair<int32_t, int64_t> locate(int64_t sample) {
        if (sample < 0) throw py::value_error("locate: negative sample number");
        const SampleName name = assembler_->name(sample);
        return {name.corpus, name.row};
    }

    std::vector<int64_t> taken(int64_t count) { return assembler_->blend().taken(count); }

  private:
    int64_t width_;
    py::tuple sources_;
    std::unique_ptr<Assembler> assembler_;
};

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
    m.doc() = "Compiled helpers: sample index, batch assembly, blending, dropout. Checked wrappers are in megatron.";
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("dropout", &dropout_from_addresses, py::arg("x_ptr"), py::arg("y_ptr"), py::arg("rows"), py::arg("cols"),
          py::arg("keys_ptr"), py::arg("site_key"), py::arg("column_offset"), py::arg("probability"),
          py::arg("dtype_code"), py::arg("threads") = 1,
          "Counter-hash dropout over row-major [rows, cols] at raw addresses (dtype_code 0 fp32, 1 bf16; y may be x): "
          "keep ? x / (1 - p) : 0 with one 64-bit key a row.");
    m.def("permute", &permute, py::arg("n"), py::arg("key"), py::arg("places"),
          "Images of `places` (int64) under the keyed permutation of [0, n).");

    py::class_<PieceRule>(m, "PieceRule", "How sentences are cut into pieces.")
        .def(py::init([](int64_t longest, int64_t slice, int64_t fewest) {
                 if (slice < 1 || longest < slice || longest > 65535 || fewest < 1) throw py::value_error("piece rule");
                 return PieceRule{longest, slice, fewest};
             }),
             py::kw_only(), py::arg("longest"), py::arg("slice"), py::arg("fewest"));
    m.def("sample_index", &sample_index, py::kw_only(), py::arg("sizes"), py::arg("document_index"),
          py::arg("split_range"), py::arg("split_key"), py::arg("pieces"), py::arg("targets"),
          py::arg("short_probability"), py::arg("key"),
          "(rows as int64 [2 * samples], documents of the split, documents skipped for too few pieces)");
    m.def("checksum", &checksum_of, py::arg("rows"), "A 64-bit checksum of sample rows.");

    py::class_<Blend>(m, "Blend", "Greedy exact blending by weights that sum to one.")
        .def(py::init<std::vector<double>>(), py::arg("weights"))
        .def("assign", &blend_assign, py::arg("first"), py::arg("count"),
             "(corpus int32 [count], number in the corpus int64 [count])")
        .def("taken", &Blend::taken, py::arg("count"), py::call_guard<py::gil_scoped_release>(),
             "Samples of each corpus among the first `count`.");

    py::class_<ArrayAssembler>(m, "Assembler", "Batches of a blend of corpora.")
        .def(py::init([](const py::list& sources, std::vector<double> weights, int64_t seq_length, bool binary_head,
                         double mask_prob, int max_ngrams, int64_t pad, int64_t cls, int64_t sep, int64_t mask,
                         PieceRule pieces, std::vector<int32_t> vocabulary, std::vector<int32_t> random_ids) {
                 if (pieces.longest + pieces.fewest + 1 > seq_length || pieces.fewest != (binary_head ? 2 : 1) ||
                     max_ngrams < 1 || random_ids.empty()) {
                     throw py::value_error("the settings of assembly contradict each other");
                 }
                 return std::make_unique<ArrayAssembler>(
                     sources, std::move(weights),
                     AssemblyRule{seq_length, binary_head, mask_prob, max_ngrams, pad, cls, sep, mask, pieces,
                                  std::move(vocabulary), std::move(random_ids)});
             }),
             py::kw_only(), py::arg("sources"), py::arg("weights"), py::arg("seq_length"), py::arg("binary_head"),
             py::arg("mask_prob"), py::arg("max_ngrams"), py::arg("pad"), py::arg("cls"), py::arg("sep"),
             py::arg("mask"), py::arg("pieces"), py::arg("vocabulary"), py::arg("random_ids"),
             "sources: (tokens, dtype code, sizes, pointers, word bits or None, rows, key) of each corpus; "
             "vocabulary: per id the id to use, with the sign bit where it starts a word")
        .def("assemble", &ArrayAssembler::assemble, py::arg("first"), py::arg("count"),
             "(tokens, token_types, lengths, masked_positions, masked_labels, sop_labels), all int64")
        .def("locate", &ArrayAssembler::locate, py::arg("sample"), "(corpus, row in its sample index)")
        .def("taken", &ArrayAssembler::taken, py::arg("count"), py::call_guard<py::gil_scoped_release>(),
             "Samples of each corpus among the first `count`.");

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

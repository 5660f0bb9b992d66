#include "bind_samples.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "assembly.h"
#include "blend.h"
#include "permutation.h"
#include "sample_index.h"

namespace py = pybind11;

namespace megatron {
namespace {

// The address of a one-dimensional array without gaps, whatever its alignment.
const void* address(const py::array& array, py::ssize_t itemsize, const char* name) {
    if (array.ndim() != 1 || array.itemsize() != itemsize || (array.size() > 1 && array.strides(0) != itemsize)) {
        throw py::value_error(std::string(name) + ": a contiguous one-dimensional array of " +
                              std::to_string(itemsize) + "-byte elements is needed");
    }
    return array.data();
}

// An array that takes over a vector's memory, seen as elements of type `Element`.
template <typename Element, typename T>
py::array_t<Element> to_array(std::vector<T>&& values) {
    static_assert(sizeof(T) % sizeof(Element) == 0);
    auto* owned = new std::vector<T>(std::move(values));
    const py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<Element>(static_cast<py::ssize_t>(owned->size() * (sizeof(T) / sizeof(Element))),
                                reinterpret_cast<const Element*>(owned->data()), owner);
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

py::tuple sample_index(const py::array& sizes, const py::array& document_index, std::pair<int64_t, int64_t> documents,
                       std::pair<int64_t, int64_t> split_range, uint64_t split_key, PieceRule pieces,
                       TargetRule targets) {
    const Unaligned<int32_t> lengths(address(sizes, 4, "sizes"));
    const Unaligned<int64_t> starts(address(document_index, 8, "document_index"));
    const int64_t count = document_index.size() - 1;
    const auto [first, last] = documents;
    if (first < 0 || first > last || last > count) throw py::value_error("sample_index: no such documents");
    if (first < last && (starts[first] < 0 || starts[last] > sizes.size())) {
        throw py::value_error("sample_index: the documents have more sentences than there are sizes");
    }
    SampleIndex index;
    {
        py::gil_scoped_release release;
        index = build_sample_index(lengths, starts, count, first, last,
                                   {split_range.first, split_range.second, split_key}, pieces, targets);
    }
    return py::make_tuple(to_array<uint32_t>(std::move(index.rows)), index.documents, index.short_documents);
}

uint64_t checksum_of(const py::array& rows, int64_t first) {
    const auto* data = static_cast<const SampleRow*>(address(rows, sizeof(SampleRow), "rows"));
    py::gil_scoped_release release;
    return checksum(data, rows.size(), first);
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
            const auto [tokens, type, sizes, pointers, document_index, words, rows, targets, key] =
                item.cast<std::tuple<py::array, int, py::array, py::array, py::array, std::optional<py::array>,
                                     py::array, TargetRule, uint64_t>>();
            if (rows.size() == 0) throw py::value_error("a corpus without samples");
            addresses.push_back({address(tokens, tokens.itemsize(), "tokens"), static_cast<TokenType>(type),
                                 Unaligned<int32_t>(address(sizes, 4, "sizes")),
                                 Unaligned<int64_t>(address(pointers, 8, "pointers")),
                                 Unaligned<int64_t>(address(document_index, 8, "document_index")),
                                 words ? static_cast<const uint8_t*>(address(*words, 1, "words")) : nullptr,
                                 sizes.size(), document_index.size() - 1,
                                 static_cast<const SampleRow*>(address(rows, sizeof(SampleRow), "rows")), rows.size(),
                                 targets, key});
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
        return py::make_tuple(tokens, types, lengths, to_array<int64_t>(std::move(batch.masked_positions)),
                              to_array<int64_t>(std::move(batch.masked_labels)), labels);
    }

    std::pair<int32_t, std::vector<int64_t>> locate(int64_t sample) {
        if (sample < 0) throw py::value_error("locate: negative sample number");
        const SampleParts parts = assembler_->parts(sample);
        std::vector<int64_t> rows{parts.own.row};
        if (parts.exchanged) rows.push_back(parts.other.row);
        return {parts.corpus, rows};
    }

    std::vector<int64_t> taken(int64_t count) { return assembler_->blend().taken(count); }

  private:
    int64_t width_;
    py::tuple sources_;
    std::unique_ptr<Assembler> assembler_;
};

std::unique_ptr<ArrayAssembler> make_assembler(const py::list& sources, std::vector<double> weights,
                                               int64_t seq_length, int objective,
                                               std::tuple<double, double, int64_t> mask_share, int max_ngrams,
                                               int64_t pad, int64_t cls, int64_t sep, int64_t mask, PieceRule pieces,
                                               std::vector<int32_t> vocabulary, std::vector<int32_t> random_ids) {
    if (objective < 0 || objective > 2 || pieces.fewest != (objective ? 2 : 1) || max_ngrams < 1 ||
        pieces.longest + pieces.fewest + 1 > seq_length || (pieces.full_sentences && objective) ||
        random_ids.empty()) {
        throw py::value_error("the settings of assembly contradict each other");
    }
    const auto [first, last, samples] = mask_share;
    return std::make_unique<ArrayAssembler>(
        sources, std::move(weights),
        AssemblyRule{seq_length, static_cast<Objective>(objective), MaskShare{first, last, samples}, max_ngrams, pad,
                     cls, sep, mask, pieces, std::move(vocabulary), std::move(random_ids)});
}

}  // namespace

void bind_samples(py::module_& m) {
    m.def("permute", &permute, py::arg("n"), py::arg("key"), py::arg("places"),
          "Images of `places` (int64) under the keyed permutation of [0, n).");

    py::class_<PieceRule>(m, "PieceRule", "How sentences are cut into pieces.")
        .def(py::init([](int64_t longest, int64_t slice, int64_t fewest, bool full_sentences) {
                 if (slice < 1 || longest < slice || longest > 65535 || fewest < 1) throw py::value_error("piece rule");
                 return PieceRule{longest, slice, fewest, full_sentences};
             }),
             py::kw_only(), py::arg("longest"), py::arg("slice"), py::arg("fewest"), py::arg("full_sentences"));
    py::class_<TargetRule>(m, "TargetRule", "The tokens that a sample aims at, by where it starts.")
        .def(py::init([](int64_t longest, int64_t shortest, double short_probability, uint64_t key) {
                 if (shortest < 1 || longest < shortest || longest > 65535) throw py::value_error("target rule");
                 return TargetRule{longest, shortest, short_probability, key};
             }),
             py::kw_only(), py::arg("longest"), py::arg("shortest"), py::arg("short_probability"), py::arg("key"))
        .def("__call__", &TargetRule::operator(), py::arg("sentence"), py::arg("offset"));
    m.def("sample_index", &sample_index, py::kw_only(), py::arg("sizes"), py::arg("document_index"),
          py::arg("documents"), py::arg("split_range"), py::arg("split_key"), py::arg("pieces"), py::arg("targets"),
          "Of the documents [first, last): (rows as uint32 [3 * samples], those of the split, those of them skipped for "
          "too few pieces)");
    m.def("checksum", &checksum_of, py::arg("rows"), py::arg("first"),
          "A 64-bit checksum of sample rows, the first of which has number `first`; those of parts add up.");

    py::class_<Blend>(m, "Blend", "Greedy exact blending by weights that sum to one.")
        .def(py::init<std::vector<double>>(), py::arg("weights"))
        .def("assign", &blend_assign, py::arg("first"), py::arg("count"),
             "(corpus int32 [count], number in the corpus int64 [count])")
        .def("taken", &Blend::taken, py::arg("count"), py::call_guard<py::gil_scoped_release>(),
             "Samples of each corpus among the first `count`.");

    py::class_<ArrayAssembler>(m, "Assembler", "Batches of a blend of corpora.")
        .def(py::init(&make_assembler), py::kw_only(), py::arg("sources"), py::arg("weights"), py::arg("seq_length"),
             py::arg("objective"), py::arg("mask_share"), py::arg("max_ngrams"), py::arg("pad"), py::arg("cls"),
             py::arg("sep"), py::arg("mask"), py::arg("pieces"), py::arg("vocabulary"), py::arg("random_ids"),
             "sources: (tokens, dtype code, sizes, pointers, document index, word bits or None, rows, targets, key) of "
             "each corpus; objective: 0 none, 1 sentence order, 2 next sentence; mask_share: (first, last, samples); "
             "vocabulary: per id the id to use, with the sign bit where it starts a word")
        .def("assemble", &ArrayAssembler::assemble, py::arg("first"), py::arg("count"),
             "(tokens, token_types, lengths, masked_positions, masked_labels, order_labels), all int64")
        .def("locate", &ArrayAssembler::locate, py::arg("sample"),
             "(corpus, rows in its sample index: its own, and the one that gives the second segment where it is another)")
        .def("taken", &ArrayAssembler::taken, py::arg("count"), py::call_guard<py::gil_scoped_release>(),
             "Samples of each corpus among the first `count`.");
}

}  // namespace megatron

// The part of the Python module megatron._C that turns text into ids and words.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind_text.h"
#include "jieba.h"
#include "json_line.h"
#include "sentences.h"
#include "text_encoder.h"
#include "wordpiece.h"

namespace py = pybind11;

namespace megatron {
namespace {

using Floats = py::array_t<double, py::array::c_style | py::array::forcecast>;

// Code points of a str, read where they lie; the str must stay alive.
class Text {
  public:
    explicit Text(py::handle str) {
        if (!PyUnicode_Check(str.ptr())) throw py::type_error("a str is needed");
        kind_ = PyUnicode_KIND(str.ptr());
        data_ = PyUnicode_DATA(str.ptr());
        size_ = PyUnicode_GET_LENGTH(str.ptr());
    }

    void copy_to(std::u32string& out) const {
        out.resize(size_);
        if (kind_ == PyUnicode_1BYTE_KIND) {
            std::copy_n(static_cast<const uint8_t*>(data_), size_, out.begin());
        } else if (kind_ == PyUnicode_2BYTE_KIND) {
            std::copy_n(static_cast<const uint16_t*>(data_), size_, out.begin());
        } else {
            std::copy_n(static_cast<const uint32_t*>(data_), size_, out.begin());
        }
    }

  private:
    int kind_;
    const void* data_;
    int64_t size_;
};

std::u32string characters(py::handle str) {
    std::u32string out;
    Text(str).copy_to(out);
    return out;
}

py::str to_str(const char32_t* text, int64_t size) {
    return py::reinterpret_steal<py::str>(PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text, size));
}

std::vector<std::u32string> all_characters(const std::vector<py::str>& strings) {
    std::vector<std::u32string> out;
    for (const py::str& string : strings) out.push_back(characters(string));
    return out;
}

// An array that takes over the memory of a vector.
template <typename Element, typename Stored>
py::array_t<Element> to_array(std::vector<Stored> values) {
    static_assert(sizeof(Element) == sizeof(Stored));
    auto* owned = new std::vector<Stored>(std::move(values));
    py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<Stored>*>(p); });
    return py::array_t<Element>(static_cast<py::ssize_t>(owned->size()), reinterpret_cast<Element*>(owned->data()),
                                owner);
}

std::shared_ptr<Jieba> make_jieba(const py::bytes& dictionary,
                                  const std::vector<std::pair<py::str, std::optional<int64_t>>>& user_words,
                                  const Floats& start, const Floats& transition, const Floats& emission) {
    constexpr py::ssize_t kCharacters = HiddenMarkovModel::kLast - HiddenMarkovModel::kFirst + 1;
    if (start.size() != 4 || transition.size() != 16 || emission.size() != 4 * kCharacters) {
        throw py::value_error("jieba: start [4], transition [4, 4] and emission [20950, 4] are needed");
    }
    std::vector<UserWord> words;
    for (const auto& [word, frequency] : user_words) {
        words.push_back({characters(word), frequency ? *frequency : UserWord::kSuggest});
    }
    HiddenMarkovModel model;
    std::copy_n(start.data(), 4, model.start.data());
    std::copy_n(transition.data(), 16, model.transition[0].data());
    model.emission.resize(kCharacters);
    std::copy_n(emission.data(), emission.size(), model.emission[0].data());
    const std::string_view content = dictionary;
    py::gil_scoped_release release;
    return std::make_shared<Jieba>(content, words, std::move(model));
}

py::list jieba_words(const Jieba& jieba, const py::str& str) {
    const std::u32string text = characters(str);
    std::vector<uint8_t> starts(text.size());
    Jieba::Workspace work;
    const auto size = static_cast<int64_t>(text.size());
    {
        py::gil_scoped_release release;
        jieba.cut(text.data(), size, true, starts.data(), work);
    }
    py::list words;
    for (int64_t begin = 0; begin < size;) {
        int64_t end = begin + 1;
        while (end < size && !starts[end]) ++end;
        words.append(to_str(text.data() + begin, end - begin));
        begin = end;
    }
    return words;
}

using Positions = std::vector<std::pair<int32_t, int32_t>>;

// Asks the tokenizers library: a function from a word to (ids, offsets).
WordPiece::Library ask(py::function library) {
    return [library = std::move(library)](const std::u32string& word, std::vector<Token>& tokens) {
        py::gil_scoped_acquire acquire;
        const auto [ids, offsets] = library(to_str(word.data(), static_cast<int64_t>(word.size())))
                                        .cast<std::pair<std::vector<int32_t>, Positions>>();
        if (ids.size() != offsets.size()) throw py::value_error("WordPiece: an offset for each id");
        for (size_t i = 0; i < ids.size(); ++i) tokens.push_back({ids[i], offsets[i].first, offsets[i].second});
    };
}

std::pair<std::vector<int32_t>, Positions> wordpiece_encode(WordPiece& wordpiece, const py::str& str) {
    const std::u32string text = characters(str);
    std::vector<Token> tokens;
    {
        py::gil_scoped_release release;  // a lock of the tokenizer must never wait for it
        wordpiece.encode(text.data(), 0, static_cast<int64_t>(text.size()), tokens);
    }
    std::pair<std::vector<int32_t>, Positions> out;
    for (const Token& token : tokens) {
        out.first.push_back(token.id);
        out.second.emplace_back(token.begin, token.end);
    }
    return out;
}

using Words = std::vector<py::str>;

std::unordered_set<std::u32string> word_set(const Words& words) {
    const auto all = all_characters(words);
    return {all.begin(), all.end()};
}

std::shared_ptr<SentenceRules> make_rules(const py::array_t<uint16_t, py::array::c_style>& classes,
                                          const std::vector<std::tuple<py::str, py::str, int64_t, bool>>& asides,
                                          const Words& before_name, const Words& before_number, const Words& may_end,
                                          const Words& ends_like_a_word, const Words& first_words,
                                          const py::str& numerals, int64_t longest_word, int64_t most_closers) {
    if (classes.size() != 0x110000) throw py::value_error("SentenceRules: a class for every character");
    auto rules = std::make_shared<SentenceRules>();
    rules->classes.assign(classes.data(), classes.data() + classes.size());
    for (const auto& [open, close, longest, title] : asides) {
        rules->asides.push_back({characters(open).at(0), characters(close).at(0), longest, title});
    }
    rules->before_name = word_set(before_name);
    rules->before_number = word_set(before_number);
    rules->may_end = word_set(may_end);
    rules->ends_like_a_word = word_set(ends_like_a_word);
    rules->first_words = word_set(first_words);
    rules->numerals = characters(numerals);
    rules->longest_word = longest_word;
    rules->most_closers = most_closers;
    return rules;
}

py::list split_text(const SentenceRules& rules, const py::str& str) {
    const std::u32string text = characters(str);
    std::vector<Span> spans;
    split_sentences(rules, text.data(), static_cast<int64_t>(text.size()), spans);
    py::list sentences;
    for (const auto& [begin, end] : spans) sentences.append(to_str(text.data() + begin, end - begin));
    return sentences;
}

// TextEncoder for Python; one thread at a time is in it.
class ArrayEncoder {
  public:
    ArrayEncoder(std::shared_ptr<WordPiece> wordpiece, std::shared_ptr<const Jieba> jieba,
                 std::shared_ptr<const SentenceRules> rules)
        : encoder_(std::move(wordpiece), std::move(jieba), std::move(rules)) {}

    py::tuple encode(const py::sequence& documents) {
        const py::tuple kept(documents);
        std::vector<Text> texts(kept.begin(), kept.end());
        EncodedTexts out;
        {
            py::gil_scoped_release release;
            const std::lock_guard<std::mutex> lock(mutex_);
            std::u32string buffer;
            for (const Text& text : texts) {
                text.copy_to(buffer);
                encoder_.add(buffer.data(), static_cast<int64_t>(buffer.size()), out);
            }
        }
        return to_tuple(std::move(out));
    }

    py::object encode_lines(const py::sequence& lines, const std::vector<py::str>& keys) {
        const py::tuple kept(lines);
        std::vector<std::string_view> views;
        for (const py::handle& line : kept) {
            if (!PyBytes_Check(line.ptr())) return py::none();
            views.emplace_back(PyBytes_AS_STRING(line.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(line.ptr())));
        }
        const auto names = all_characters(keys);
        std::vector<EncodedTexts> out(keys.size());
        bool usual = true;
        {
            py::gil_scoped_release release;
            const std::lock_guard<std::mutex> lock(mutex_);
            std::vector<std::u32string> texts;
            for (const std::string_view line : views) {
                const LineKind kind = read_json_line(line, names, texts);
                usual = kind != LineKind::kUnusual;
                if (!usual) break;
                for (size_t i = 0; kind == LineKind::kTexts && i < texts.size(); ++i) {
                    encoder_.add(texts[i].data(), static_cast<int64_t>(texts[i].size()), out[i]);
                }
            }
        }
        if (!usual) return py::none();
        py::list columns;
        for (EncodedTexts& column : out) columns.append(to_tuple(std::move(column)));
        return columns;
    }

  private:
    static py::tuple to_tuple(EncodedTexts out) {
        const TextCounts& c = out.counts;
        py::dict counts(py::arg("documents") = c.documents, py::arg("empty_documents") = c.empty_documents,
                        py::arg("sentences") = c.sentences, py::arg("tokens") = c.tokens,
                        py::arg("characters") = c.characters, py::arg("text_bytes") = c.text_bytes,
                        py::arg("unknown_tokens") = c.unknown_tokens, py::arg("words") = c.words,
                        py::arg("multi_character_words") = c.multi_character_words);
        return py::make_tuple(to_array<int32_t>(std::move(out.tokens)), to_array<int32_t>(std::move(out.lengths)),
                              to_array<int64_t>(std::move(out.documents)), to_array<bool>(std::move(out.starts)),
                              counts);
    }

    TextEncoder encoder_;
    std::mutex mutex_;
};

}  // namespace

void bind_text(py::module_& m) {
    py::class_<Jieba, std::shared_ptr<Jieba>>(m, "Jieba", "Words exactly as jieba cuts them.")
        .def(py::init(&make_jieba), py::kw_only(), py::arg("dictionary"), py::arg("user_words"), py::arg("start"),
             py::arg("transition"), py::arg("emission"),
             "dictionary: jieba's dict.txt; user_words: (word, frequency or None); log probabilities of the states "
             "B E M S: start [4], transition [from, to], emission [character - 0x4e00, state]")
        .def("__call__", &jieba_words, py::arg("text"), "The words of a text; joined, they are the text.");

    py::class_<WordPiece, std::shared_ptr<WordPiece>>(m, "WordPiece", "Ids as the tokenizers library gives them.")
        .def(py::init([](const std::vector<py::str>& vocabulary, const std::vector<py::str>& special,
                         const py::str& unknown, bool lower_case, py::function library) {
                 return std::make_shared<WordPiece>(all_characters(vocabulary), all_characters(special),
                                                    characters(unknown), lower_case, ask(std::move(library)));
             }),
             py::kw_only(), py::arg("vocabulary"), py::arg("special"), py::arg("unknown"), py::arg("lower_case"),
             py::arg("library"),
             "vocabulary: the token of each id; special: tokens that stand in the text as they are; library(word): "
             "(ids, offsets) of what this class does not know how to normalize")
        .def("encode", &wordpiece_encode, py::arg("text"), "(ids, characters [begin, end) of each)");

    py::class_<SentenceRules, std::shared_ptr<SentenceRules>>(m, "SentenceRules", "How text is split into sentences.")
        .def(py::init(&make_rules), py::kw_only(), py::arg("classes"), py::arg("asides"), py::arg("before_name"),
             py::arg("before_number"), py::arg("may_end"), py::arg("ends_like_a_word"), py::arg("first_words"),
             py::arg("numerals"), py::arg("longest_word"), py::arg("most_closers"),
             "classes: uint16 [0x110000], a set of bits for every character; asides: (open, close, most characters "
             "between, whether it is a title)")
        .def("split", &split_text, py::arg("text"), "The sentences of a text.");

    py::class_<ArrayEncoder>(m, "TextEncoder", "Documents to ids, sentences and word starts.")
        .def(py::init<std::shared_ptr<WordPiece>, std::shared_ptr<Jieba>, std::shared_ptr<SentenceRules>>(),
             py::kw_only(), py::arg("wordpiece"), py::arg("jieba"), py::arg("rules"))
        .def("encode", &ArrayEncoder::encode, py::arg("documents"),
             "(tokens int32, lengths int32, documents int64, word starts bool, counts) of a sequence of str")
        .def("encode_lines", &ArrayEncoder::encode_lines, py::arg("lines"), py::arg("keys"),
             "The same for each key of lines of JSON (bytes); None if a line is malformed or unusual.");
}

}  // namespace megatron

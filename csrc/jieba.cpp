#include "jieba.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "unicode.h"

namespace megatron {
namespace {

constexpr uint16_t kOutside = 0, kUnknown = 1, kFirstCode = 2;
constexpr double kNoWord = -std::numeric_limits<double>::infinity();

bool is_han(char32_t c) { return c >= HiddenMarkovModel::kFirst && c <= HiddenMarkovModel::kLast; }

bool is_digit(char32_t c) { return c >= '0' && c <= '9'; }

// jieba's re_eng.
bool is_english(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c); }

// jieba's re_han_default: what the dictionary is asked about.
bool in_block(char32_t c) {
    return is_han(c) || is_english(c) || c == '+' || c == '#' || c == '&' || c == '.' || c == '_' || c == '%' ||
           c == '-';
}

// The best path through a dictionary: lengths[i] of the word that starts at i if one does. `Trie` has kRoot, none(),
// child() and value(), the log probability. Ties go to the longer word, sums are in jieba's order.
template <typename Trie, typename Symbol>
void best_path(const Trie& trie, double unknown, const Symbol* text, int64_t size, double* scores, int32_t* pairs,
               int32_t* lengths) {
    // Where each two characters lead, first: nothing depends on the one before, so the memory is asked for all at once.
    for (int64_t i = 0; i < size; ++i) {
        pairs[i] = i + 1 < size ? trie.child(trie.child(trie.kRoot, text[i]), text[i + 1]) : trie.none();
        scores[i] = trie.value(pairs[i]);
    }
    scores[size] = 0;
    for (int64_t begin = size - 1; begin >= 0; --begin) {
        double best = trie.value(trie.child(trie.kRoot, text[begin])) + scores[begin + 1];
        int64_t longest = begin + 1;
        auto node = pairs[begin];
        double value = scores[begin];
        for (int64_t end = begin + 2; node != trie.none(); ++end) {
            // Without a branch, which nothing could predict; a mere beginning of words scores kNoWord.
            const double score = value + scores[end];
            longest = score >= best ? end : longest;
            best = score >= best ? score : best;
            if (end == size) break;
            node = trie.child(node, text[end]);
            value = trie.value(node);
        }
        const bool found = best != kNoWord;
        scores[begin] = found ? best : unknown + scores[begin + 1];
        lengths[begin] = found ? static_cast<int32_t>(longest - begin) : 1;
    }
}

// The double array as `best_path` takes it.
struct Dictionary {
    using Node = DoubleArray<uint32_t>::Node;
    static constexpr Node kRoot = DoubleArray<uint32_t>::kRoot;
    const DoubleArray<uint32_t>& trie;
    const std::vector<double>& log_probabilities;
    Node none() const { return trie.none(); }
    Node child(Node node, uint16_t code) const { return trie.child(node, code); }
    double value(Node node) const { return log_probabilities[trie.value(node)]; }
};

}  // namespace

// jieba's FREQ, a trie: a node that is no word is a beginning of one, with frequency 0.
struct Jieba::Builder {
    TrieBuilder trie;
    std::vector<int64_t> frequencies{0};
    int64_t total = 0;

    void set(const std::u32string& word, int64_t frequency) {
        const auto node = trie.add(word);
        frequencies.resize(trie.size(), 0);
        frequencies[node] = frequency;
        total += frequency;
    }

    static constexpr TrieBuilder::Node kRoot = TrieBuilder::kRoot;
    static constexpr TrieBuilder::Node none() { return TrieBuilder::kNone; }
    TrieBuilder::Node child(TrieBuilder::Node node, char32_t c) const { return trie.child(node, c); }
    double log_total() const { return std::log(static_cast<double>(total)); }
    double value(TrieBuilder::Node node) const {
        const int64_t frequency = node == none() ? 0 : frequencies[node];
        return frequency ? std::log(static_cast<double>(frequency)) - log_total() : kNoWord;
    }

    int64_t frequency(const char32_t* text, int64_t size, int64_t missing) const {
        auto node = kRoot;
        for (int64_t i = 0; i < size; ++i) node = child(node, text[i]);
        return node != none() ? frequencies[node] : missing;
    }

    // jieba's suggest_freq: just above the product of the words into which it would be cut without the model.
    int64_t suggest(const std::u32string& word) const {
        double product = 1;
        const auto use = [&](int64_t begin, int64_t end) {
            const int64_t known = frequency(word.data() + begin, end - begin, 1);
            product *= static_cast<double>(known) / static_cast<double>(total);
        };
        std::vector<double> scores(word.size() + 1);
        std::vector<int32_t> pairs(word.size()), lengths(word.size());
        const auto size = static_cast<int64_t>(word.size());
        for (int64_t i = 0; i < size;) {
            if (!in_block(word[i])) {  // no white space is in a word, so every character is cut off
                use(i, i + 1);
                ++i;
                continue;
            }
            int64_t end = i;
            while (end < size && in_block(word[end])) ++end;
            best_path(*this, 0.0 - log_total(), word.data() + i, end - i, scores.data(), pairs.data(), lengths.data());
            for (int64_t at = i; at < end;) {
                int64_t next = at + lengths[at - i];
                if (next == at + 1 && is_english(word[at])) {
                    while (next < end && lengths[next - i] == 1 && is_english(word[next])) ++next;
                }
                use(at, next);
                at = next;
            }
            i = end;
        }
        const auto needed = static_cast<int64_t>(product * static_cast<double>(total)) + 1;
        return std::max(needed, frequency(word.data(), size, 1));
    }
};

Jieba::Jieba(std::string_view dictionary, const std::vector<UserWord>& user_words, HiddenMarkovModel model)
    : code_of_(1 << 16, kOutside), model_(std::move(model)) {
    if (model_.emission.size() != HiddenMarkovModel::kLast - HiddenMarkovModel::kFirst + 1) {
        throw std::invalid_argument("jieba: emission probabilities of another range of characters");
    }
    Builder builder;
    int64_t number = 0;
    while (!dictionary.empty()) {
        ++number;
        const size_t end = std::min(dictionary.find('\n'), dictionary.size());
        std::string_view line = dictionary.substr(0, end);
        dictionary.remove_prefix(std::min(end + 1, dictionary.size()));
        const size_t space = line.find(' ');
        int64_t frequency = 0;
        size_t i = space == std::string_view::npos ? line.size() : space + 1;
        const size_t digits = i;
        for (; i < line.size() && is_digit(line[i]) && i - digits < 15; ++i) {
            frequency = frequency * 10 + (line[i] - '0');
        }
        if (space == 0 || i == digits || (i < line.size() && line[i] != ' ' && line[i] != '\r')) {
            throw std::invalid_argument("jieba: line " + std::to_string(number) +
                                        " of the dictionary is no WORD FREQUENCY");
        }
        builder.set(decode_utf8(line.substr(0, space)), frequency);
    }
    for (const UserWord& user : user_words) {
        const int64_t frequency = user.frequency == UserWord::kSuggest ? builder.suggest(user.word) : user.frequency;
        builder.set(user.word, frequency);
        if (frequency == 0) split_words_.insert(user.word);
    }
    if (builder.total <= 0) throw std::invalid_argument("jieba: the dictionary is empty");

    // Codes by how often a character is met, roughly.
    std::vector<int64_t> met(1 << 16, 0);
    for (size_t node = 1; node < builder.trie.size(); ++node) {
        const uint32_t symbol = builder.trie.symbol(static_cast<int32_t>(node));
        if (symbol < met.size()) met[symbol] += 1 + builder.frequencies[node];
    }
    std::vector<uint32_t> symbols;
    for (uint32_t c = 0; c < met.size(); ++c) {
        if (in_block(c)) symbols.push_back(c);
    }
    std::stable_sort(symbols.begin(), symbols.end(), [&](uint32_t a, uint32_t b) { return met[a] > met[b]; });
    uint16_t code = kFirstCode;
    for (const uint32_t c : symbols) code_of_[c] = met[c] ? code++ : kUnknown;

    // Words with other characters are never asked for: blocks end at these. Only the total knows them.
    TrieBuilder used;
    log_probabilities_ = {kNoWord};
    std::unordered_map<double, uint32_t> places{{kNoWord, 0}};
    std::vector<uint32_t> place_of{0};
    std::vector<TrieBuilder::Node> mapped(builder.trie.size(), TrieBuilder::kNone);
    mapped[0] = TrieBuilder::kRoot;
    for (size_t node = 1; node < builder.trie.size(); ++node) {
        const auto parent = mapped[builder.trie.parent(static_cast<int32_t>(node))];
        const uint32_t symbol = builder.trie.symbol(static_cast<int32_t>(node));
        if (parent == TrieBuilder::kNone || !in_block(symbol)) continue;
        mapped[node] = used.add_child(parent, symbol);
        const auto [found, is_new] = places.emplace(builder.value(static_cast<int32_t>(node)), places.size());
        if (is_new) log_probabilities_.push_back(found->first);
        place_of.push_back(found->second);
    }
    trie_ = DoubleArray<uint32_t>(
        used, code, [&](uint32_t symbol) { return code_of_[symbol]; }, [&](int32_t node) { return place_of[node]; },
        0);
    unknown_ = 0.0 - builder.log_total();
}

void Jieba::cut(const char32_t* text, int64_t size, bool hmm, uint8_t* starts, Workspace& work) const {
    if (static_cast<int64_t>(work.codes.size()) < size) {
        work.codes.resize(size);
        work.pairs.resize(size);
        work.lengths.resize(size);
        work.scores.resize(size + 1);
    }
    std::fill(starts, starts + size, uint8_t{0});
    const Dictionary dictionary{trie_, log_probabilities_};
    for (int64_t i = 0; i < size; ++i) work.codes[i] = text[i] < code_of_.size() ? code_of_[text[i]] : kOutside;
    for (int64_t i = 0; i < size;) {
        if (work.codes[i] == kOutside) {
            starts[i] = text[i] != '\n' || i == 0 || text[i - 1] != '\r';
            ++i;
            continue;
        }
        int64_t end = i;
        while (end < size && work.codes[end] != kOutside) ++end;
        best_path(dictionary, unknown_, work.codes.data() + i, end - i, work.scores.data() + i, work.pairs.data() + i,
                  work.lengths.data() + i);
        if (hmm) {
            cut_block_with_model(text, i, end, starts, work);
        } else {
            cut_block(text, i, end, starts, work);
        }
        i = end;
    }
}

// Words of the path, with runs of single letters and digits joined.
void Jieba::cut_block(const char32_t* text, int64_t begin, int64_t end, uint8_t* starts, const Workspace& work) const {
    bool joins = false;
    for (int64_t i = begin; i < end; i += work.lengths[i]) {
        const bool single = work.lengths[i] == 1 && is_english(text[i]);
        starts[i] = !(single && joins);
        joins = single;
    }
}

// Words of the path; runs of single characters that are no word together are left to the model.
void Jieba::cut_block_with_model(const char32_t* text, int64_t begin, int64_t end, uint8_t* starts,
                                 Workspace& work) const {
    for (int64_t i = begin; i < end;) {
        starts[i] = 1;
        if (work.lengths[i] != 1) {
            i += work.lengths[i];
            continue;
        }
        int64_t last = i + 1;
        while (last < end && work.lengths[last] == 1) ++last;
        if (last > i + 1) {
            if (is_word(work.codes.data() + i, last - i)) {
                std::fill(starts + i, starts + last, uint8_t{1});
            } else {
                cut_unknown(text + i, last - i, starts + i, work);
            }
        }
        i = last;
    }
}

bool Jieba::is_word(const uint16_t* codes, int64_t size) const {
    auto node = trie_.kRoot;
    for (int64_t i = 0; i < size && node != trie_.none(); ++i) node = trie_.child(node, codes[i]);
    return trie_.value(node) != 0;
}

// jieba.finalseg.cut: the model on Chinese characters; numbers and Latin words by a rule.
void Jieba::cut_unknown(const char32_t* text, int64_t size, uint8_t* starts, Workspace& work) const {
    for (int64_t i = 0; i < size;) {
        starts[i] = 1;
        int64_t end = i;
        if (is_han(text[i])) {
            while (end < size && is_han(text[end])) ++end;
            viterbi(text + i, end - i, starts + i, work);
        } else if (is_english(text[i])) {  // [a-zA-Z0-9]+(?:\.\d+)?%?
            while (end < size && is_english(text[end])) ++end;
            if (end + 1 < size && text[end] == '.' && is_digit(text[end + 1])) {
                end += 2;
                while (end < size && is_digit(text[end])) ++end;
            }
            if (end < size && text[end] == '%') ++end;
        } else {
            while (end < size && !is_han(text[end]) && !is_english(text[end])) ++end;
        }
        i = end;
    }
}

void Jieba::viterbi(const char32_t* text, int64_t size, uint8_t* starts, Workspace& work) const {
    enum { B, E, M, S };
    // The two states that may stand before each, in the order of their letters.
    static constexpr int kBefore[4][2] = {{E, S}, {B, M}, {B, M}, {E, S}};
    if (static_cast<int64_t>(work.back.size()) < 4 * size) work.back.resize(4 * size);
    std::array<double, 4> scores, next;
    const auto* emission = &model_.emission[text[0] - HiddenMarkovModel::kFirst];
    for (int state = 0; state < 4; ++state) scores[state] = model_.start[state] + (*emission)[state];
    for (int64_t i = 1; i < size; ++i) {
        emission = &model_.emission[text[i] - HiddenMarkovModel::kFirst];
        for (int state = 0; state < 4; ++state) {
            const auto [a, b] = kBefore[state];
            const double from_a = scores[a] + model_.transition[a][state] + (*emission)[state];
            const double from_b = scores[b] + model_.transition[b][state] + (*emission)[state];
            next[state] = from_b >= from_a ? from_b : from_a;
            work.back[4 * i + state] = static_cast<uint8_t>(from_b >= from_a ? b : a);
        }
        scores = next;
    }
    for (int64_t i = size - 1, state = scores[S] >= scores[E] ? S : E; i >= 0; --i) {
        starts[i] = state == B || state == S || i == 0;
        if (i > 0) state = work.back[4 * i + state];
    }
    if (split_words_.empty()) return;
    for (int64_t begin = 0; begin < size;) {
        int64_t end = begin + 1;
        while (end < size && !starts[end]) ++end;
        if (split_words_.count(std::u32string(text + begin, text + end))) {
            std::fill(starts + begin, starts + end, uint8_t{1});
        }
        begin = end;
    }
}

}  // namespace megatron

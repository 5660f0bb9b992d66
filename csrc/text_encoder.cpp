#include "text_encoder.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "unicode.h"

namespace megatron {

TextEncoder::TextEncoder(std::shared_ptr<WordPiece> wordpiece, std::shared_ptr<const Jieba> jieba,
                         std::shared_ptr<const SentenceRules> rules)
    : wordpiece_(std::move(wordpiece)), jieba_(std::move(jieba)), rules_(std::move(rules)) {
    if (!wordpiece_) throw std::invalid_argument("TextEncoder needs a tokenizer");
}

void TextEncoder::add(const char32_t* text, int64_t size, EncodedTexts& out) {
    out.counts.characters += size;
    int64_t bytes = size;
    for (int64_t i = 0; i < size; ++i) bytes += (text[i] > 0x7f) + (text[i] > 0x7ff) + (text[i] > 0xffff);
    out.counts.text_bytes += bytes;
    sentences_.clear();
    if (rules_) {
        split_sentences(*rules_, text, size, sentences_);
    } else {
        sentences_.emplace_back(0, size);
    }
    const size_t before = out.lengths.size();
    for (const auto& [begin, end] : sentences_) add_sentence(text, begin, end, out);
    const auto used = static_cast<int64_t>(out.lengths.size() - before);
    out.documents.push_back(used);
    out.counts.documents += used > 0;
    out.counts.empty_documents += used == 0;
    out.counts.sentences += used;
}

void TextEncoder::add_sentence(const char32_t* text, int64_t begin, int64_t end, EncodedTexts& out) {
    tokens_.clear();
    wordpiece_->encode(text, begin, end, tokens_);
    if (tokens_.empty()) return;
    if (jieba_) {
        word_starts_.resize(end - begin);
        jieba_->cut(text + begin, end - begin, true, word_starts_.data(), work_);
    }
    // Comparing words, not positions, also places a word right whose first character the tokenizer drops. White space
    // belongs to the word after it.
    const uint8_t* word_starts = word_starts_.data();
    const char32_t* characters = text + begin;
    const auto begins_word = [=](int32_t i) { return word_starts[i] & !is_space(characters[i - 1]); };
    const auto other_word = [=](int32_t a, int32_t b) -> bool {
        if (b == a + 1) return begins_word(b);
        const auto [low, high] = std::minmax(a, b);
        for (int32_t i = low + 1; i <= high; ++i) {
            if (begins_word(i)) return true;
        }
        return false;
    };
    const size_t size = tokens_.size(), base = out.tokens.size();
    out.tokens.resize(base + size);
    out.starts.resize(base + size);
    int32_t* ids = out.tokens.data() + base;
    uint8_t* starts = out.starts.data() + base;
    const Token* tokens = tokens_.data();
    const uint8_t* continues_word = wordpiece_->continues_word().data();
    const int32_t unknown_id = wordpiece_->unknown();
    const bool segmented = jieba_ != nullptr;
    // No branch depends on where words start: nothing could predict it.
    int64_t words = 0, long_words = 0, unknown = 0;
    bool in_word = false;
    Token last{0, 0, 0};
    int32_t word_begin = 0;
    for (size_t i = 0; i < size; ++i) {
        const Token token = tokens[i];
        const bool other = i == 0 || !segmented || other_word(last.begin, token.begin);
        const bool start = other & !continues_word[token.id];
        ids[i] = token.id;
        starts[i] = start;
        unknown += token.id == unknown_id;
        words += start;
        long_words += start & in_word & (last.end - word_begin > 1);
        word_begin = start ? token.begin : word_begin;
        in_word |= start;
        last = token;
    }
    TextCounts& counts = out.counts;
    counts.words += words;
    counts.multi_character_words += long_words + (in_word & (last.end - word_begin > 1));
    counts.unknown_tokens += unknown;
    counts.tokens += static_cast<int64_t>(size);
    out.lengths.push_back(static_cast<int32_t>(size));
}

}  // namespace megatron

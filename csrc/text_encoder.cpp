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
    if (used > 0) out.documents.push_back(used);
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
        // White space belongs to the word after it.
        for (int64_t i = begin + 1; i < end; ++i) word_starts_[i - begin] &= !is_space(text[i - 1]);
    }
    // Comparing words, not positions, also places a word right whose first character the tokenizer drops.
    const auto other_word = [&](int32_t a, int32_t b) {
        const auto [low, high] = std::minmax(a, b);
        for (int32_t i = low + 1; i <= high; ++i) {
            if (word_starts_[i]) return true;
        }
        return false;
    };
    TextCounts& counts = out.counts;
    const size_t base = out.tokens.size();
    out.tokens.resize(base + tokens_.size());
    out.starts.resize(base + tokens_.size());
    bool in_word = false;
    int32_t word_begin = 0;
    const auto end_word = [&](int32_t word_end) { counts.multi_character_words += in_word && word_end - word_begin > 1; };
    for (size_t i = 0; i < tokens_.size(); ++i) {
        const Token token = tokens_[i];
        const bool starts = !wordpiece_->continues_word(token.id) &&
                            (i == 0 || !jieba_ || other_word(tokens_[i - 1].begin, token.begin));
        out.tokens[base + i] = token.id;
        out.starts[base + i] = starts;
        counts.unknown_tokens += token.id == wordpiece_->unknown();
        if (!starts) continue;
        if (i > 0) end_word(tokens_[i - 1].end);
        word_begin = token.begin;
        in_word = true;
        ++counts.words;
    }
    end_word(tokens_.back().end);
    counts.tokens += static_cast<int64_t>(tokens_.size());
    out.lengths.push_back(static_cast<int32_t>(tokens_.size()));
}

}  // namespace megatron

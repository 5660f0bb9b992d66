// Documents to token ids, sentences and word starts, on one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "jieba.h"
#include "sentences.h"
#include "wordpiece.h"

namespace megatron {

struct TextCounts {  // Counts of megatron/data/encode.py
    int64_t documents = 0, empty_documents = 0, sentences = 0, tokens = 0, characters = 0, text_bytes = 0,
            unknown_tokens = 0, words = 0, multi_character_words = 0;
};

struct EncodedTexts {
    std::vector<int32_t> tokens;
    std::vector<int32_t> lengths;    // tokens of each sentence that has some
    std::vector<int64_t> documents;  // sentences of each document, 0 where it has no token
    std::vector<uint8_t> starts;     // [tokens] 1 where a token starts a word
    TextCounts counts;
};

class TextEncoder {
  public:
    // Without `jieba` every token that does not continue a word starts one; without `rules` a document is a sentence.
    TextEncoder(std::shared_ptr<WordPiece> wordpiece, std::shared_ptr<const Jieba> jieba,
                std::shared_ptr<const SentenceRules> rules);

    // Appends a document. Not thread-safe.
    void add(const char32_t* text, int64_t size, EncodedTexts& out);

  private:
    void add_sentence(const char32_t* text, int64_t begin, int64_t end, EncodedTexts& out);

    std::shared_ptr<WordPiece> wordpiece_;
    std::shared_ptr<const Jieba> jieba_;
    std::shared_ptr<const SentenceRules> rules_;
    Jieba::Workspace work_;
    std::vector<Span> sentences_;
    std::vector<uint8_t> word_starts_;
    std::vector<Token> tokens_;
};

}  // namespace megatron

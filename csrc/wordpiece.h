// WordPiece (Devlin et al., 2018) as the `tokenizers` library runs it for BERT. What a look at the characters does not
// settle (accents, other scripts, controls inside a word) is asked of that library, a word at a time, and remembered.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "trie.h"

namespace megatron {

struct Token {
    int32_t id;
    int32_t begin, end;  // characters of the text that it stands for
};

class WordPiece {
  public:
    // Appends the tokens of a text that holds no special token, with positions in this text.
    using Library = std::function<void(const std::u32string& text, std::vector<Token>& tokens)>;

    // `vocabulary`: the token of each id, all different; `special`: tokens that are found in the text as they stand,
    // each in the vocabulary and of the form "[...]". Throws std::invalid_argument where they are not.
    WordPiece(const std::vector<std::u32string>& vocabulary, const std::vector<std::u32string>& special,
              const std::u32string& unknown, bool lower_case, Library library);

    // Appends the tokens of text[begin .. end); positions count from `begin`. Thread-safe.
    void encode(const char32_t* text, int64_t begin, int64_t end, std::vector<Token>& tokens);

    int32_t unknown() const { return unknown_; }
    // For each id, whether the token starts with "##".
    const std::vector<uint8_t>& continues_word() const { return continues_word_; }

  private:
    struct Special {
        std::u32string token;
        int32_t id;
    };
    struct Remembered {  // tokens of a word: pool_[first .. first + count)
        uint32_t first, count;
    };
    using Ids = std::vector<int32_t>;  // by node of a trie; kNoId where it is no token

    Remembered look_up(const char32_t* word, int64_t size);
    void encode_word(const std::u32string& word, std::vector<Token>& tokens) const;
    const Special* special_at(const char32_t* text, int64_t size) const;

    std::vector<int32_t> single_;  // [65536]: id of a character that is always a token of its own, or a kind of others
    TrieBuilder first_, inside_;   // tokens that start a word; tokens after "##"
    Ids first_ids_, inside_ids_;
    std::vector<uint8_t> continues_word_;
    std::vector<Special> special_;
    int32_t unknown_ = 0;
    bool lower_case_;
    Library library_;
    std::mutex mutex_;  // of what follows
    std::u32string word_;
    std::unordered_map<std::u32string, Remembered> words_;
    std::vector<Token> pool_;
};

}  // namespace megatron

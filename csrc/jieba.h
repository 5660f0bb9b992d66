// Words of Chinese text exactly as jieba 0.42 cuts them (https://github.com/fxsjy/jieba): the most probable path
// through a dictionary, and a hidden Markov model for what the dictionary does not know.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "trie.h"

namespace megatron {

// Log probabilities of jieba.finalseg. States in the order of their letters, B E M S, by which jieba breaks ties.
struct HiddenMarkovModel {
    static constexpr char32_t kFirst = 0x4e00, kLast = 0x9fd5;  // characters it is asked about
    static constexpr double kNever = -3.14e100;
    std::array<double, 4> start;
    std::array<std::array<double, 4>, 4> transition;
    std::vector<std::array<double, 4>> emission;  // [kLast - kFirst + 1], kNever where there is none
};

struct UserWord {
    std::u32string word;
    int64_t frequency;  // kSuggest: as large as needed for the word to be cut out
    static constexpr int64_t kSuggest = -1;
};

class Jieba {
  public:
    // What a cut works in; one for each thread, used again and again.
    struct Workspace {
        std::vector<uint16_t> codes;
        std::vector<double> scores;
        std::vector<int32_t> pairs, lengths;
        std::vector<uint8_t> back;
    };

    // `dictionary`: the content of jieba's dict.txt (valid UTF-8, lines "WORD FREQUENCY [TAG]").
    // Throws std::invalid_argument for a malformed line.
    Jieba(std::string_view dictionary, const std::vector<UserWord>& user_words, HiddenMarkovModel model);

    // Sets starts[i] to 1 where a word of text[0 .. size) starts and to 0 elsewhere. Thread-safe.
    void cut(const char32_t* text, int64_t size, bool hmm, uint8_t* starts, Workspace& work) const;

  private:
    struct Builder;

    void cut_block(const char32_t* text, int64_t begin, int64_t end, uint8_t* starts, const Workspace& work) const;
    void cut_block_with_model(const char32_t* text, int64_t begin, int64_t end, uint8_t* starts, Workspace& work) const;
    void cut_unknown(const char32_t* text, int64_t size, uint8_t* starts, Workspace& work) const;
    void viterbi(const char32_t* text, int64_t size, uint8_t* starts, Workspace& work) const;
    bool is_word(const uint16_t* codes, int64_t size) const;

    std::vector<uint16_t> code_of_;  // [65536]: 0 outside of blocks, kUnknown in no word, else a code of the trie
    DoubleArray<uint32_t> trie_;     // for a word the place of its log probability; 0 for a mere beginning of words
    std::vector<double> log_probabilities_;  // all different: few enough to stay in the cache
    double unknown_ = 0;             // log probability of a character that is no word
    HiddenMarkovModel model_;
    std::unordered_set<std::u32string> split_words_;  // words of frequency 0: the model may not make them
};

}  // namespace megatron

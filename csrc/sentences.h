// Sentences of text: the rules of megatron/data/text.py, which has the words and the classes of characters.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace megatron {

// Bits of a character; the order of megatron/data/text.py.
enum CharacterClass : uint16_t {
    kLetter = 1 << 0,
    kWordCharacter = 1 << 1,   // letter or number
    kLastWord = 1 << 2,        // may stand in the word before a full point
    kHan = 1 << 3,             // Chinese, its punctuation included
    kBlank = 1 << 4,           // \s
    kDecimal = 1 << 5,         // \d
    kWhite = 1 << 6,           // str.isspace
    kLower = 1 << 7,           // str.islower
    kDigit = 1 << 8,           // str.isdigit
    kLineEnd = 1 << 9,
    kMark = 1 << 10,
    kFullStop = 1 << 11,
    kEllipsis = 1 << 12,
    kCloser = 1 << 13,
    kGoesOn = 1 << 14,
    kOpener = 1 << 15,  // quotes and brackets, those of asides among them
};

// Brackets that keep their sentences to themselves if they close within `longest` characters.
struct Aside {
    char32_t open, close;
    int64_t longest;
    bool title;
};

struct SentenceRules {
    std::vector<uint16_t> classes;  // [0x110000] sets of CharacterClass
    std::vector<Aside> asides;
    std::unordered_set<std::u32string> before_name, before_number, may_end, ends_like_a_word, first_words;
    std::u32string numerals;  // Chinese ones, of list numbers
    int64_t longest_word, most_closers;
};

using Span = std::pair<int64_t, int64_t>;  // [begin, end)

// Appends the sentences of text[0 .. size). Takes time linear in the text. Thread-safe.
void split_sentences(const SentenceRules& rules, const char32_t* text, int64_t size, std::vector<Span>& sentences);

}  // namespace megatron

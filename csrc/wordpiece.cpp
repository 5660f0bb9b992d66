#include "wordpiece.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace megatron {
namespace {

constexpr int32_t kNoId = -1;
constexpr char32_t kTabled = 1 << 16;  // characters with a place in the table of single ones
// Kinds of characters in the table of single characters, which has ids from 0 on.
constexpr int32_t kSpace = -1, kBracket = -2, kInWord = -3;
constexpr size_t kLongestWord = 100;  // longer ones are unknown, as in the library
constexpr size_t kMostRemembered = 1 << 20;

struct Range {
    char32_t first, last;
};

constexpr char32_t kSpaces[] = {'\t', '\n', '\r', ' ', 0xa0, 0x3000};
// Tokens of their own in every version of Unicode, which no normalization changes: punctuation and ideographs.
constexpr Range kSingle[] = {{'!', '/'},       {':', '@'},       {'[', '`'},       {'{', '~'},       {0xb7, 0xb7},
                             {0x2010, 0x2027}, {0x2030, 0x2043}, {0x2045, 0x2051}, {0x2053, 0x205e}, {0x3001, 0x3003},
                             {0x3008, 0x3011}, {0x3014, 0x301f}, {0x3030, 0x3030}, {0x3400, 0x4db5}, {0x4e00, 0x9fcc},
                             {0xff01, 0xff03}, {0xff05, 0xff0a}, {0xff0c, 0xff0f}, {0xff1a, 0xff1b}, {0xff1f, 0xff20},
                             {0xff3b, 0xff3d}, {0xff3f, 0xff3f}, {0xff5b, 0xff5b}, {0xff5d, 0xff5d}, {0xff5f, 0xff65}};

bool in(char32_t c, char32_t first, char32_t last) { return c >= first && c <= last; }

bool is_capital(char32_t c) { return in(c, 'A', 'Z') || in(c, 0xff21, 0xff3a); }

// Letters and digits, also of full width, that normalization leaves alone but for their case.
bool is_plain(char32_t c) {
    return in(c, 'a', 'z') || in(c, '0', '9') || is_capital(c) || in(c, 0xff10, 0xff19) || in(c, 0xff41, 0xff5a);
}

void set_id(TrieBuilder& trie, std::vector<int32_t>& ids, const std::u32string& token, int32_t id) {
    const auto node = trie.add(token);
    ids.resize(trie.size(), kNoId);
    ids[node] = id;
}

}  // namespace

WordPiece::WordPiece(const std::vector<std::u32string>& vocabulary, const std::vector<std::u32string>& special,
                     const std::u32string& unknown, bool lower_case, Library library)
    : single_(kTabled, kInWord),
      first_ids_{kNoId},
      inside_ids_{kNoId},
      lower_case_(lower_case),
      library_(std::move(library)) {
    std::unordered_map<std::u32string, int32_t> ids;
    for (const auto& token : vocabulary) {
        const auto id = static_cast<int32_t>(ids.size());
        if (token.empty() || !ids.emplace(token, id).second) throw std::invalid_argument("WordPiece: repeated token");
        const bool inside = token.size() > 2 && token[0] == '#' && token[1] == '#';
        continues_word_.push_back(token.size() >= 2 && token[0] == '#' && token[1] == '#');
        set_id(first_, first_ids_, token, id);
        if (inside) set_id(inside_, inside_ids_, token.substr(2), id);
    }
    const auto id_of = [&](const std::u32string& token) {
        const auto found = ids.find(token);
        if (found == ids.end()) throw std::invalid_argument("WordPiece: a special token is not in the vocabulary");
        return found->second;
    };
    unknown_ = id_of(unknown);
    for (const auto& token : special) {
        if (token.size() < 2 || token[0] != '[') throw std::invalid_argument("WordPiece: special tokens start with [");
        special_.push_back({token, id_of(token)});
    }
    for (const Range& range : kSingle) {
        for (char32_t c = range.first; c <= range.last; ++c) {
            const auto found = ids.find(std::u32string(1, c));
            single_[c] = found == ids.end() ? unknown_ : found->second;
        }
    }
    for (const char32_t c : kSpaces) single_[c] = kSpace;
    const int32_t bracket = single_['['];
    special_.push_back({U"[", bracket});  // the last choice
    single_['['] = kBracket;
}

void WordPiece::encode(const char32_t* text, int64_t begin, int64_t end, std::vector<Token>& tokens) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int32_t* single = single_.data();
    // Room for a token a character; words that come to more make more.
    size_t size = tokens.size();
    tokens.resize(size + static_cast<size_t>(end - begin));
    for (int64_t i = begin; i < end;) {
        const int32_t kind = text[i] < kTabled ? single[text[i]] : kInWord;
        const auto at = static_cast<int32_t>(i - begin);
        if (kind >= 0) {
            tokens[size++] = {kind, at, at + 1};
            ++i;
        } else if (kind == kSpace) {
            ++i;
        } else if (kind == kBracket) {
            const Special* found = special_at(text + i, end - i);
            tokens[size++] = {found->id, at, at + static_cast<int32_t>(found->token.size())};
            i += static_cast<int64_t>(found->token.size());
        } else {
            int64_t last = i + 1;
            while (last < end && (text[last] >= kTabled || single[text[last]] == kInWord)) ++last;
            const Remembered word = look_up(text + i, last - i);
            tokens.resize(std::max(tokens.size(), size + word.count + static_cast<size_t>(end - last)));
            for (uint32_t k = word.first; k < word.first + word.count; ++k) {
                tokens[size++] = {pool_[k].id, at + pool_[k].begin, at + pool_[k].end};
            }
            i = last;
        }
    }
    tokens.resize(size);
}

const WordPiece::Special* WordPiece::special_at(const char32_t* text, int64_t size) const {
    const auto stands_here = [&](const Special& special) {
        const auto length = static_cast<int64_t>(special.token.size());
        return length <= size && std::equal(special.token.begin(), special.token.end(), text);
    };
    return &*std::find_if(special_.begin(), special_.end(), stands_here);
}

WordPiece::Remembered WordPiece::look_up(const char32_t* word, int64_t size) {
    word_.assign(word, size);
    const auto found = words_.find(word_);
    if (found != words_.end()) return found->second;
    if (pool_.size() > kMostRemembered) {
        words_.clear();
        pool_.clear();
    }
    const size_t first = pool_.size();
    if (std::all_of(word_.begin(), word_.end(), is_plain)) {
        encode_word(word_, pool_);
    } else {
        std::vector<Token> tokens;
        library_(word_, tokens);
        pool_.insert(pool_.end(), tokens.begin(), tokens.end());
    }
    const Remembered made{static_cast<uint32_t>(first), static_cast<uint32_t>(pool_.size() - first)};
    if (word_.size() <= kLongestWord) words_.emplace(word_, made);
    return made;
}

// The longest token at each place; a word that does not come out even is unknown as a whole.
void WordPiece::encode_word(const std::u32string& word, std::vector<Token>& tokens) const {
    const size_t first_token = tokens.size();
    for (size_t begin = 0; begin < word.size();) {
        const TrieBuilder& trie = begin == 0 ? first_ : inside_;
        const Ids& ids = begin == 0 ? first_ids_ : inside_ids_;
        Token best{kNoId, static_cast<int32_t>(begin), static_cast<int32_t>(begin)};
        auto node = TrieBuilder::kRoot;
        for (size_t end = begin; end < word.size();) {
            node = trie.child(node, word[end] + (lower_case_ && is_capital(word[end]) ? 'a' - 'A' : 0));
            if (node == TrieBuilder::kNone) break;
            ++end;
            if (ids[node] != kNoId) best = {ids[node], best.begin, static_cast<int32_t>(end)};
        }
        if (best.id == kNoId || word.size() > kLongestWord) {
            tokens.resize(first_token);
            tokens.push_back({unknown_, 0, static_cast<int32_t>(word.size())});
            return;
        }
        tokens.push_back(best);
        begin = static_cast<size_t>(best.end);
    }
}

}  // namespace megatron

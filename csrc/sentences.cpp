#include "sentences.h"

#include <algorithm>

namespace megatron {
namespace {

bool is_ascii_letter(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::u32string lower(std::u32string word) {
    for (char32_t& c : word) {
        if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
    }
    return word;
}

// One line, which holds no line end.
class Line {
  public:
    Line(const SentenceRules& rules, const char32_t* text, int64_t begin, int64_t end)
        : rules_(rules), text_(text), begin_(begin), end_(end) {}

    void split(std::vector<Span>& sentences) const {
        std::vector<int64_t> ends;
        find_ends(ends);
        int64_t start = begin_, begin = begin_;
        bool said = false;
        for (const int64_t end : ends) {
            const bool says = skip(begin, end, kWordCharacter, false) < end;
            if (said && says) {
                add(start, begin, sentences);
                start = begin;
            }
            said = said || says;
            begin = end;
        }
        add(start, end_, sentences);
    }

  private:
    bool is(int64_t i, uint16_t classes) const { return rules_.classes[text_[i]] & classes; }

    // The first place from `i` on where a character is not of the classes (`of`), or is (not `of`).
    int64_t skip(int64_t i, int64_t end, uint16_t classes, bool of = true) const {
        while (i < end && is(i, classes) == of) ++i;
        return i;
    }

    void add(int64_t begin, int64_t end, std::vector<Span>& sentences) const {
        begin = skip(begin, end, kWhite);
        while (end > begin && is(end - 1, kWhite)) --end;
        if (begin < end) sentences.emplace_back(begin, end);
    }

    void find_ends(std::vector<int64_t>& ends) const {
        std::vector<std::pair<Span, bool>> asides;  // with whether it is a title
        size_t aside = 0;
        int64_t begin = begin_, quotes = 0, counted = begin_, mark_end = begin_;
        const auto count_quotes = [&](int64_t from, int64_t to) { return std::count(text_ + from, text_ + to, U'"'); };
        while (true) {
            const int64_t mark = skip(mark_end, end_, kMark, false);
            if (mark == end_) break;
            if (counted == begin_) find_asides(asides);
            mark_end = skip(mark, end_, kMark);
            quotes += count_quotes(counted, mark_end);
            counted = mark_end;
            int64_t end = mark_end, inner = quotes;
            while (end < std::min(end_, mark_end + rules_.most_closers) && closes(end, inner)) {
                inner += text_[end] == '"';
                ++end;
            }
            while (aside < asides.size() && asides[aside].first.second <= mark) ++aside;
            if (aside < asides.size() && asides[aside].first.first < mark) {
                const auto& [span, title] = asides[aside];
                if (title || span.first > skip(begin, end_, kBlank)) continue;
            }
            if (is_end(begin, mark, mark_end, end)) {
                ends.push_back(end);
                begin = end;
            }
        }
        if (begin < end_) ends.push_back(end_);
    }

    void find_asides(std::vector<std::pair<Span, bool>>& asides) const {
        for (int64_t i = begin_; i < end_; ++i) {
            if (!is(i, kOpener)) continue;
            const char32_t c = text_[i];
            const auto found = std::find_if(rules_.asides.begin(), rules_.asides.end(),
                                            [&](const Aside& aside) { return aside.open == c; });
            if (found == rules_.asides.end()) continue;
            const int64_t last = std::min(end_, i + found->longest + 2);
            int64_t close = i + 1;
            while (close < last && text_[close] != found->open && text_[close] != found->close) ++close;
            if (close < last && text_[close] == found->close) {
                asides.push_back({{i, close + 1}, found->title});
                i = close;
            }
        }
    }

    // Straight quotes look the same on both sides.
    bool closes(int64_t i, int64_t quotes_before) const {
        if (!is(i, kCloser)) return false;
        const bool last = i + 1 >= end_;
        if (text_[i] == '"') return quotes_before % 2 == 1 || last || is(i + 1, kWhite);
        if (text_[i] == '\'') return last || !is(i + 1, kWordCharacter);
        return true;
    }

    std::u32string first_word(int64_t i) const {
        i = skip(skip(i, end_, kBlank), end_, kOpener);
        if (i == end_ || is(i, kBlank)) return {};
        int64_t last = i + 1;
        if (is(i, kLetter)) {
            while (last < end_ && (is(last, kLetter) || text_[last] == '\'' || text_[last] == U'’')) ++last;
            if (last < end_ && text_[last] == '.') last = i + 1;
        }
        return {text_ + i, text_ + last};
    }

    // Whether the marks [mark, mark_end), closed up to `end`, end the sentence that began at `begin`.
    bool is_end(int64_t begin, int64_t mark, int64_t mark_end, int64_t end) const {
        if (end == end_) return true;
        if (is(end, kGoesOn) || (end > mark_end && text_[end] == U'的')) return false;
        if (skip(mark, mark_end, kFullStop, false) < mark_end) return true;
        const std::u32string word = first_word(end);
        const bool spaced = is(end, kWhite);
        const bool lower_case = !word.empty() && rules_.classes[word[0]] & kLower;
        if (spaced && lower_case) return false;
        const auto marked = [&](char32_t c) { return std::find(text_ + mark, text_ + mark_end, c) < text_ + mark_end; };
        if (marked('!') || marked('?')) return spaced || is(end, kHan);
        int64_t ellipses = 0;
        for (int64_t i = mark; i < mark_end; ++i) ellipses += is(i, kEllipsis);
        if (ellipses > 0 || mark_end - mark > 1) {
            // Chinese writes six dots (two characters); fewer, with no space after them, are a pause.
            return spaced || ((mark_end - mark >= 6 || ellipses >= 2) && !lower_case);
        }
        return full_point_ends(begin, mark, word, end > mark_end, end);
    }

    bool full_point_ends(int64_t begin, int64_t mark, const std::u32string& word, bool closed, int64_t end) const {
        int64_t first = mark;
        const int64_t earliest = std::max(begin, mark - rules_.longest_word);
        while (first > earliest && is(first - 1, kLastWord)) --first;
        int64_t last = mark;
        const auto stripped = [&](int64_t i) { return text_[i] == '\'' || text_[i] == U'’' || text_[i] == '-'; };
        while (first < last && stripped(first)) ++first;
        while (first < last && stripped(last - 1)) --last;
        const std::u32string token(text_ + first, text_ + last);
        const bool ascii = std::all_of(token.begin(), token.end(), [](char32_t c) { return c < 0x80; });
        const bool spaced = is(end, kWhite);
        if (!spaced && !is(end, kHan)) return false;
        if (!spaced && !closed && !token.empty() && (is(last - 1, kDigit) || (ascii && token.size() == 1))) {
            return false;
        }
        if (is_list_number(begin, mark)) return false;
        const std::u32string key = lower(token);
        if (rules_.ends_like_a_word.count(key)) return true;
        if (rules_.before_name.count(key)) return false;
        if (rules_.before_number.count(key) && !word.empty() && rules_.classes[word[0]] & kDigit) return false;
        if (rules_.may_end.count(key) || (ascii && is_initials(token))) {
            return rules_.first_words.count(lower(word)) > 0;
        }
        return true;
    }

    // "1.2", "(a", "iv", ...: all of [begin, end).
    bool is_list_number(int64_t begin, int64_t end) const {
        int64_t i = skip(begin, end, kBlank);
        if (i < end && (text_[i] == '(' || text_[i] == U'（' || text_[i] == '[')) ++i;
        if (i == end) return false;
        if (end - i == 1 && is(i, kLetter)) return true;
        const auto all_in = [&](const std::u32string& set) {
            return std::all_of(text_ + i, text_ + end, [&](char32_t c) { return set.find(c) != set.npos; });
        };
        if (all_in(U"ivxIVX") || (end - i <= 3 && all_in(rules_.numerals))) return true;
        while (true) {  // groups of one to three digits with full points between them
            const int64_t last = skip(i, end, kDecimal);
            if (last == i || last - i > 3) return false;
            if (last == end) return true;
            if (text_[last] != '.') return false;
            i = last + 1;
        }
    }

    static bool is_initials(const std::u32string& token) {
        if (token.size() % 2 == 0) return false;
        for (size_t i = 0; i < token.size(); ++i) {
            if (i % 2 == 0 ? !is_ascii_letter(token[i]) : token[i] != '.') return false;
        }
        return true;
    }

    const SentenceRules& rules_;
    const char32_t* text_;
    int64_t begin_, end_;
};

}  // namespace

void split_sentences(const SentenceRules& rules, const char32_t* text, int64_t size, std::vector<Span>& sentences) {
    const auto line_end = [&](int64_t i) { return (rules.classes[text[i]] & kLineEnd) != 0; };
    for (int64_t begin = 0; begin < size;) {
        int64_t end = begin;
        while (end < size && !line_end(end)) ++end;
        Line(rules, text, begin, end).split(sentences);
        begin = end + 1;
    }
}

}  // namespace megatron

#include "json_line.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace megatron {
namespace {

constexpr int kDeepest = 32;
constexpr int64_t kLongestNumber = 1000;  // Python refuses integers of some thousands of digits

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Each function reads one thing at the front of what is left and returns whether it is there.
class Reader {
  public:
    explicit Reader(std::string_view line) : at_(line.data()), end_(line.data() + line.size()) {}

    bool at_end() const { return at_ == end_; }

    void skip_space() {
        while (at_ < end_ && is_space(*at_)) ++at_;
    }

    bool take(char c) {
        if (at_ == end_ || *at_ != c) return false;
        ++at_;
        return true;
    }

    bool string(std::u32string& out) {
        if (!take('"')) return false;
        out.resize(static_cast<size_t>(end_ - at_));  // no more characters than bytes
        char32_t* to = out.data();
        while (at_ < end_) {
            const auto c = static_cast<uint8_t>(*at_);
            if (c >= 0x80) {
                if (!utf8(*to++)) return false;
            } else if (c == '"') {
                ++at_;
                out.resize(static_cast<size_t>(to - out.data()));
                return true;
            } else if (c == '\\') {
                ++at_;
                if (!escape(*to++)) return false;
            } else if (c < 0x20) {
                return false;
            } else {
                *to++ = c;
                ++at_;
            }
        }
        return false;
    }

    // Any value; what it is does not matter.
    bool value(int depth, std::u32string& scratch) {
        if (at_ == end_ || depth > kDeepest) return false;
        switch (*at_) {
            case '"': return string(scratch);
            case '{': return members(scratch, [&](const std::u32string&) { return value(depth + 1, scratch); });
            case '[': return elements(depth, scratch);
            case 't': return word("true");
            case 'f': return word("false");
            case 'n': return word("null");
            default: return number();
        }
    }

    // An object; `member(key)` reads the value of each of its keys.
    template <typename Member>
    bool members(std::u32string& scratch, Member member) {
        if (!take('{')) return false;
        skip_space();
        if (take('}')) return true;
        while (true) {
            skip_space();
            if (!string(scratch)) return false;
            skip_space();
            if (!take(':')) return false;
            skip_space();
            if (!member(scratch)) return false;
            skip_space();
            if (take('}')) return true;
            if (!take(',')) return false;
        }
    }

  private:
    bool elements(int depth, std::u32string& scratch) {
        take('[');
        skip_space();
        if (take(']')) return true;
        while (true) {
            skip_space();
            if (!value(depth + 1, scratch)) return false;
            skip_space();
            if (take(']')) return true;
            if (!take(',')) return false;
        }
    }

    bool word(std::string_view expected) {
        if (std::string_view(at_, end_ - at_).substr(0, expected.size()) != expected) return false;
        at_ += expected.size();
        return true;
    }

    bool digits() {
        const char* begin = at_;
        while (at_ < end_ && is_digit(*at_)) ++at_;
        return at_ > begin;
    }

    bool number() {
        const char* begin = at_;
        take('-');
        if (!take('0') && !digits()) return false;
        if (take('.') && !digits()) return false;
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            if (!digits()) return false;
        }
        return at_ - begin <= kLongestNumber;
    }

    bool utf8(char32_t& out) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(at_);
        const auto left = end_ - at_;
        const auto more = [&](int i) { return static_cast<char32_t>(bytes[i] & 0x3f); };
        const auto is_more = [&](int i) { return (bytes[i] & 0xc0) == 0x80; };
        if (bytes[0] >= 0xe0 && bytes[0] < 0xf0 && left >= 3 && is_more(1) && is_more(2)) {
            out = static_cast<char32_t>(bytes[0] & 0x0f) << 12 | more(1) << 6 | more(2);
            at_ += 3;
            return out >= 0x800 && (out < 0xd800 || out >= 0xe000);
        }
        if (bytes[0] >= 0xc2 && bytes[0] < 0xe0 && left >= 2 && is_more(1)) {
            out = static_cast<char32_t>(bytes[0] & 0x1f) << 6 | more(1);
            at_ += 2;
            return true;
        }
        if (bytes[0] >= 0xf0 && bytes[0] < 0xf5 && left >= 4 && is_more(1) && is_more(2) && is_more(3)) {
            out = static_cast<char32_t>(bytes[0] & 0x07) << 18 | more(1) << 12 | more(2) << 6 | more(3);
            at_ += 4;
            return out >= 0x10000 && out < 0x110000;
        }
        return false;
    }

    bool escape(char32_t& out) {
        static constexpr char kLetters[] = "\"\\/bfnrt", kMeanings[] = "\"\\/\b\f\n\r\t";
        if (at_ == end_) return false;
        if (*at_ == 'u') {
            ++at_;
            if (!hexadecimal(out)) return false;
            if (out < 0xd800 || out >= 0xe000) return true;
            char32_t low;
            if (out >= 0xdc00 || !word("\\u") || !hexadecimal(low) || low < 0xdc00 || low >= 0xe000) return false;
            out = 0x10000 + ((out - 0xd800) << 10) + (low - 0xdc00);
            return true;
        }
        const char* found = std::strchr(kLetters, *at_);
        if (*at_ == '\0' || found == nullptr) return false;
        out = static_cast<char32_t>(kMeanings[found - kLetters]);
        ++at_;
        return true;
    }

    bool hexadecimal(char32_t& out) {
        if (end_ - at_ < 4) return false;
        out = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = *at_;
            const char small = static_cast<char>(c | 0x20);
            if (!is_digit(c) && (small < 'a' || small > 'f')) return false;
            out = out << 4 | static_cast<char32_t>(is_digit(c) ? c - '0' : small - 'a' + 10);
        }
        return true;
    }

    const char* at_;
    const char* end_;
};

}  // namespace

LineKind read_json_line(std::string_view line, const std::vector<std::u32string>& keys,
                        std::vector<std::u32string>& texts) {
    texts.resize(keys.size());
    std::vector<bool> found(keys.size(), false);
    Reader reader(line);
    reader.skip_space();
    if (reader.at_end()) return LineKind::kBlank;
    std::u32string scratch;
    const auto member = [&](const std::u32string& key) {
        const auto place = std::find(keys.begin(), keys.end(), key) - keys.begin();
        if (place == static_cast<std::ptrdiff_t>(keys.size())) return reader.value(1, scratch);
        found[place] = true;
        return reader.string(texts[place]);
    };
    if (!reader.members(scratch, member)) return LineKind::kUnusual;
    reader.skip_space();
    const bool all = std::find(found.begin(), found.end(), false) == found.end();
    return all && reader.at_end() ? LineKind::kTexts : LineKind::kUnusual;
}

}  // namespace megatron

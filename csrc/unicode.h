// The little of Unicode that never changes: UTF-8 and white space.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace megatron {

// Python's str.isspace for one character.
inline bool is_space(char32_t c) {
    if (c > 0x3000) return false;
    if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x1f);
    if (c < 0x1680) return c == 0x85 || c == 0xa0;
    return c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

// Code points of UTF-8 that is known to be valid.
inline std::u32string decode_utf8(std::string_view text) {
    std::u32string out;
    for (size_t i = 0; i < text.size();) {
        const auto lead = static_cast<uint8_t>(text[i++]);
        const int more = lead < 0x80 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        char32_t c = more == 0 ? lead : lead & (0x3f >> more);
        for (int k = 0; k < more && i < text.size(); ++k) c = c << 6 | (static_cast<uint8_t>(text[i++]) & 0x3f);
        out.push_back(c);
    }
    return out;
}

}  // namespace megatron

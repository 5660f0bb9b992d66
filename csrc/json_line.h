// The texts of a line of JSON, where the line is of the usual kind.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace megatron {

enum class LineKind {
    kTexts,    // an object with a string under every key
    kBlank,    // white space
    kUnusual,  // malformed, or well-formed in a way that is left to Python's parser, which also says what is wrong
};

// Sets texts[i] to the string under keys[i]. Takes no line that Python's `json` would refuse or read otherwise.
LineKind read_json_line(std::string_view line, const std::vector<std::u32string>& keys,
                        std::vector<std::u32string>& texts);

}  // namespace megatron

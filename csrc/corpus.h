// A corpus as C++ sees it: addresses inside mapped files, which the caller keeps alive and has checked.
#pragma once

#include <cstdint>
#include <cstring>

namespace megatron {

// The .idx header is 34 bytes long, so its arrays are not aligned: elements are copied out.
template <typename T>
class Unaligned {
  public:
    Unaligned() = default;
    explicit Unaligned(const void* data) : data_(static_cast<const uint8_t*>(data)) {}
    T operator[](int64_t i) const {
        T value;
        std::memcpy(&value, data_ + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
        return value;
    }

  private:
    const uint8_t* data_ = nullptr;
};

// How sentences are cut into pieces: those longer than `longest` into slices of `slice` tokens, the last maybe shorter.
// With two segments a slice is half of what fits, so that a pair of slices fills a sample and nothing is cut away.
struct PieceRule {
    int64_t longest, slice;
    int64_t fewest;  // pieces of a sample: one for each segment
    int64_t length(int64_t sentence) const { return sentence <= longest ? sentence : slice; }
    int64_t count(int64_t sentence) const {
        return sentence <= longest ? (sentence > 0) : (sentence + slice - 1) / slice;
    }
};

// One sample: a run of pieces inside one document, and the tokens to keep of it.
struct SampleRow {
    int64_t sentence;  // of the first piece
    uint32_t offset;   // of the first piece in its sentence, in tokens
    uint16_t pieces;
    uint16_t target;
};
static_assert(sizeof(SampleRow) == 16, "rows are written to the cache as they are");

}  // namespace megatron

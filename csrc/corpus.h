// A corpus as C++ sees it: addresses inside mapped files, which the caller keeps alive and has checked.
#pragma once

#include <cstdint>
#include <cstring>

#include "hash.h"

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
    int64_t fewest;       // pieces of a sample: one for each segment
    bool full_sentences;  // a sample ends before the piece that does not fit, not after the one that reaches the target
    int64_t length(int64_t sentence) const { return sentence <= longest ? sentence : slice; }
    int64_t count(int64_t sentence) const {
        return sentence <= longest ? (sentence > 0) : (sentence + slice - 1) / slice;
    }
};

// The tokens that a sample aims at, without special tokens: a function of where it starts, so that nothing stores it.
struct TargetRule {
    int64_t longest, shortest;
    double short_probability;  // share of samples with a target drawn uniformly from [shortest, longest]
    uint64_t key;
    // "Short?" and "how short?" are separate draws: one draw for both makes only some lengths possible.
    int64_t operator()(int64_t sentence, int64_t offset) const {
        Random random(combine(key, static_cast<uint64_t>(sentence)) + static_cast<uint64_t>(offset));
        const auto threshold = static_cast<uint64_t>(short_probability * 4294967296.0);
        if ((random.next() >> 32) >= threshold) return longest;
        return shortest + random.below(static_cast<uint32_t>(longest - shortest + 1));
    }
};

// One sample: a run of pieces inside one document. 12 bytes, for there are billions.
struct SampleRow {
    uint32_t sentence_low;   // number of the sentence that holds the first piece
    uint32_t offset;         // of the first piece in its sentence, in tokens
    uint16_t sentence_high;
    uint16_t pieces;
    int64_t sentence() const { return static_cast<int64_t>(uint64_t{sentence_high} << 32 | sentence_low); }
};
static_assert(sizeof(SampleRow) == 12, "rows are written to the cache as they are");

}  // namespace megatron

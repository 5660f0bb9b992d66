// From sample numbers to a batch of arrays: segments, truncation, whole-word and n-gram masking.
#pragma once

#include <cstdint>
#include <vector>

#include "blend.h"
#include "corpus.h"

namespace megatron {

enum class TokenType : int { uint8 = 1, int8 = 2, int16 = 3, int32 = 4, int64 = 5, uint16 = 8 };  // codes of the .idx

// One corpus of a split: its files and its samples.
struct SampleSource {
    const void* tokens;
    TokenType type;
    Unaligned<int32_t> sizes;
    Unaligned<int64_t> pointers;
    const uint8_t* words;  // a bit a token, or null: then the vocabulary says what starts a word
    int64_t sentences;
    const SampleRow* rows;
    int64_t num_rows;
    uint64_t key;
};

struct AssemblyRule {
    int64_t seq_length;
    bool binary_head;  // two segments, in order or swapped
    double mask_prob;
    int max_ngrams;
    int64_t pad, cls, sep, mask;
    PieceRule pieces;
    std::vector<int32_t> vocabulary;  // per id: the id to use, and kStartsWord where it starts a word
    std::vector<int32_t> random_ids;  // what may replace a masked token
    static constexpr int32_t kStartsWord = INT32_MIN;
};

// Where assemble() writes; arrays are row-major [count, seq_length] or [count].
struct BatchArrays {
    int64_t *tokens, *token_types, *lengths, *sop_labels;
    std::vector<int64_t> masked_positions, masked_labels;
};

struct SampleName {
    int32_t corpus;
    int64_t row;     // in the rows of the corpus
    uint64_t random;  // key of all its random numbers
};

class Assembler {
  public:
    Assembler(std::vector<SampleSource> sources, std::vector<double> weights, AssemblyRule rule);

    // Samples first .. first + count - 1 of the blend. Thread-safe. Every random number is a function of (key of the
    // corpus, epoch, sample in the epoch), so neither the order nor the size of the calls matters.
    // Throws std::runtime_error where the files do not hold what the index promises.
    void assemble(int64_t first, int64_t count, BatchArrays& batch);

    SampleName name(int64_t sample);

    Blend& blend() { return blend_; }

  private:
    SampleName name(int32_t corpus, int64_t number) const;

    const std::vector<SampleSource> sources_;
    const AssemblyRule rule_;
    std::vector<uint32_t> ngram_thresholds_;  // P(n <= i + 1) in units of 2^-32
    Blend blend_;
};

}  // namespace megatron

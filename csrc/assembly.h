// From sample numbers to a batch of arrays: segments, truncation, whole-word and n-gram masking.
#pragma once

#include <algorithm>
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
    Unaligned<int64_t> document_index;
    const uint8_t* words;  // a bit a token, or null: then the vocabulary says what starts a word
    int64_t sentences, documents;
    const SampleRow* rows;
    int64_t num_rows;
    TargetRule targets;
    uint64_t key;
};

// What the two segments of a sample are: none (one segment), two runs of a document in order or swapped (ALBERT's
// sentence order), or a run and what follows it or a run of another document (BERT's next sentence).
enum class Objective : int { none = 0, sentence_order = 1, next_sentence = 2 };

// Share of the tokens to predict: linear in the number of the sample, constant from `samples` on.
struct MaskShare {
    double first, last;
    int64_t samples;
    double operator()(int64_t sample) const {
        if (sample >= samples) return last;
        return first + (last - first) * (static_cast<double>(sample) / static_cast<double>(samples));
    }
};

struct AssemblyRule {
    int64_t seq_length;
    Objective objective;
    MaskShare mask_share;
    int max_ngrams;
    int64_t pad, cls, sep, mask;
    PieceRule pieces;
    std::vector<int32_t> vocabulary;  // per id: the id to use, and kStartsWord where it starts a word
    std::vector<int32_t> random_ids;  // what may replace a masked token
    static constexpr int32_t kStartsWord = INT32_MIN;
};

// Where assemble() writes; arrays are row-major [count, seq_length] or [count].
struct BatchArrays {
    int64_t *tokens, *token_types, *lengths, *order_labels;
    std::vector<int64_t> masked_positions, masked_labels;
};

struct SampleName {
    int64_t row;      // in the rows of the corpus
    uint64_t random;  // key of all its random numbers
};

// What a sample is made of: a row, and another one whose second segment it has instead of its own.
struct SampleParts {
    int32_t corpus;
    SampleName own, other;
    bool exchanged;
};

class Assembler {
  public:
    Assembler(std::vector<SampleSource> sources, std::vector<double> weights, AssemblyRule rule);

    // Samples first .. first + count - 1 of the blend. Thread-safe. Every random number is a function of (key of the
    // corpus, epoch, sample in the epoch), so neither the order nor the size of the calls matters.
    // Throws std::runtime_error where the files do not hold what the index promises.
    void assemble(int64_t first, int64_t count, BatchArrays& batch);

    SampleParts parts(int64_t sample);

    Blend& blend() { return blend_; }

  private:
    SampleParts parts(int32_t corpus, int64_t number) const;
    int64_t replacement(int64_t token, uint64_t draw) const;

    const std::vector<SampleSource> sources_;
    const AssemblyRule rule_;
    std::vector<uint32_t> ngram_thresholds_;  // P(n <= i + 1) in units of 2^-32
    Blend blend_;
};

}  // namespace megatron

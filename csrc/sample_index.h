#pragma once

#include <cstdint>
#include <vector>

#include "corpus.h"

namespace megatron {

// A document belongs to the split if its place in a keyed permutation of all documents is in [first, last).
struct SplitRange {
    int64_t first, last;
    uint64_t key;
};

struct TargetRule {
    int64_t longest, shortest;  // tokens without special tokens
    double short_probability;   // share of samples with a target drawn uniformly from [shortest, longest]
    uint64_t key;
};

struct SampleIndex {
    std::vector<SampleRow> rows;
    int64_t documents = 0;        // of the split
    int64_t short_documents = 0;  // of these, skipped for having too few pieces
};

// The samples of one epoch over a split: consecutive pieces of a document until the target is reached, as Megatron's
// build_mapping. Every piece of a usable document is in exactly one sample.
SampleIndex build_sample_index(Unaligned<int32_t> sizes, Unaligned<int64_t> document_index, int64_t documents,
                               SplitRange split, PieceRule pieces, TargetRule targets);

// A checksum of the rows, to find a damaged cache.
uint64_t checksum(const SampleRow* rows, int64_t count);

}  // namespace megatron

// The samples of one epoch over a split of a corpus.
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

struct SampleIndex {
    std::vector<SampleRow> rows;
    int64_t documents = 0;        // of the split
    int64_t short_documents = 0;  // of these, skipped for having too few pieces
};

// The samples of documents [first, last) that belong to the split: consecutive pieces of a document until the target is
// reached, as Megatron's build_mapping. Every piece of a usable document is in exactly one sample. Samples depend on
// their own document alone, so the index can be built in blocks of documents.
SampleIndex build_sample_index(Unaligned<int32_t> sizes, Unaligned<int64_t> document_index, int64_t documents,
                               int64_t first, int64_t last, SplitRange split, PieceRule pieces, TargetRule targets);

// A checksum of the rows, to find a damaged cache: that of a whole index is the sum of those of its parts. `first` is
// the number of the first row.
uint64_t checksum(const SampleRow* rows, int64_t count, int64_t first);

}  // namespace megatron

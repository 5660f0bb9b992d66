#include "sample_index.h"

#include <algorithm>

#include "hash.h"
#include "permutation.h"

namespace megatron {
namespace {

// "Short?" and "how short?" are separate draws: one draw for both makes only some lengths possible.
uint16_t draw_target(const TargetRule& rule, uint64_t threshold, Random& random) {
    if ((random.next() >> 32) >= threshold) return static_cast<uint16_t>(rule.longest);
    return static_cast<uint16_t>(rule.shortest + random.below(static_cast<uint32_t>(rule.longest - rule.shortest + 1)));
}

}  // namespace

SampleIndex build_sample_index(Unaligned<int32_t> sizes, Unaligned<int64_t> document_index, int64_t documents,
                               SplitRange split, PieceRule pieces, TargetRule targets) {
    SampleIndex index;
    const Permutation place(static_cast<uint64_t>(std::max<int64_t>(documents, 1)), split.key);
    const bool all = split.first == 0 && split.last == documents;
    const uint64_t threshold = static_cast<uint64_t>(targets.short_probability * 4294967296.0);

    for (int64_t d = 0; d < documents; ++d) {
        if (!all) {
            const int64_t p = static_cast<int64_t>(place(static_cast<uint64_t>(d)));
            if (p < split.first || p >= split.last) continue;
        }
        ++index.documents;
        const int64_t begin = document_index[d], end = document_index[d + 1];
        int64_t remaining = 0;
        for (int64_t s = begin; s < end; ++s) remaining += pieces.count(sizes[s]);
        if (remaining < pieces.fewest) {
            ++index.short_documents;
            continue;
        }
        Random random(combine(targets.key, static_cast<uint64_t>(d)));
        SampleRow row{0, 0, 0, draw_target(targets, threshold, random)};
        int64_t count = 0, tokens = 0;
        for (int64_t s = begin; s < end; ++s) {
            const int64_t size = sizes[s];
            const int64_t step = pieces.length(size);
            for (int64_t offset = 0; offset < size; offset += step) {
                if (count == 0) {
                    row.sentence = s;
                    row.offset = static_cast<uint32_t>(offset);
                }
                ++count;
                --remaining;
                tokens += std::min(step, size - offset);
                if ((tokens >= row.target && count >= pieces.fewest && remaining >= pieces.fewest) || remaining == 0) {
                    row.pieces = static_cast<uint16_t>(count);
                    index.rows.push_back(row);
                    row.target = draw_target(targets, threshold, random);
                    count = tokens = 0;
                }
            }
        }
    }
    return index;
}

uint64_t checksum(const SampleRow* rows, int64_t count) {
    uint64_t sum = static_cast<uint64_t>(count);
    for (int64_t i = 0; i < count; ++i) {
        uint64_t words[2];
        std::memcpy(words, rows + i, sizeof words);
        sum += mix64(words[0] ^ mix64(words[1] + static_cast<uint64_t>(i)));
    }
    return sum;
}

}  // namespace megatron

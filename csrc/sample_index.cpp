#include "sample_index.h"

#include <algorithm>

#include "clones.h"
#include "permutation.h"

namespace megatron {
namespace {

SampleRow row_at(int64_t sentence, int64_t offset) {
    const auto number = static_cast<uint64_t>(sentence);
    return {static_cast<uint32_t>(number), static_cast<uint32_t>(offset), static_cast<uint16_t>(number >> 32), 0};
}

}  // namespace

SampleIndex build_sample_index(Unaligned<int32_t> sizes, Unaligned<int64_t> document_index, int64_t documents,
                               int64_t first, int64_t last, SplitRange split, PieceRule pieces, TargetRule targets) {
    SampleIndex index;
    const Permutation place(static_cast<uint64_t>(std::max<int64_t>(documents, 1)), split.key);
    const bool all = split.first == 0 && split.last == documents;

    for (int64_t d = first; d < last; ++d) {
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
        SampleRow row{};
        int64_t count = 0, tokens = 0, target = 0;
        for (int64_t s = begin; s < end; ++s) {
            const int64_t size = sizes[s];
            const int64_t step = pieces.length(size);
            for (int64_t offset = 0; offset < size; offset += step) {
                const int64_t length = std::min(step, size - offset);
                if (pieces.full_sentences && count > 0 && tokens + length > target) {
                    row.pieces = static_cast<uint16_t>(count);
                    index.rows.push_back(row);
                    count = tokens = 0;
                }
                if (count == 0) {
                    row = row_at(s, offset);
                    target = targets(s, offset);
                }
                ++count;
                --remaining;
                tokens += length;
                const bool full = tokens >= target && count >= pieces.fewest && remaining >= pieces.fewest;
                if ((full && !pieces.full_sentences) || remaining == 0) {
                    row.pieces = static_cast<uint16_t>(count);
                    index.rows.push_back(row);
                    count = tokens = 0;
                }
            }
        }
    }
    return index;
}

MEGATRON_CLONES uint64_t checksum(const SampleRow* rows, int64_t count, int64_t first) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint64_t low;
        uint32_t high;
        std::memcpy(&low, rows + i, sizeof low);
        std::memcpy(&high, reinterpret_cast<const char*>(rows + i) + sizeof low, sizeof high);
        sum += mix64(low ^ mix64((static_cast<uint64_t>(first + i) << 32) + high));
    }
    return sum;
}

}  // namespace megatron

#include "shared_group.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "hash.h"

namespace megatron {
namespace {

using Segment = SharedSegment;

constexpr int64_t kSmall = 16 << 10;  // bytes up to which every member sums everything itself: one wait, not two

uint64_t call_of(uint64_t kind, int64_t amount, Element element, Reduction reduction) {
    return combine(combine(kind, static_cast<uint64_t>(amount)),
                   static_cast<uint64_t>(element) * 8 + static_cast<uint64_t>(reduction));
}

// A length in equal chunks of at most `most`, their sizes (but the last) in multiples of `unit`, which divides `most`.
struct Chunks {
    Chunks(int64_t length, int64_t most, int64_t unit)
        : total(length), size(round_up(divide_up(length, divide_up(length, most)), unit)),
          count(divide_up(length, size)) {}
    int64_t begin(int64_t k) const { return k * size; }
    int64_t length(int64_t k) const { return std::min(size, total - k * size); }
    int64_t total, size, count;
};

bool overlap(const char* a, int64_t a_bytes, const char* b, int64_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

}  // namespace

SharedGroup::SharedGroup(const std::string& name, int rank, int size, int64_t slot_bytes, bool create,
                         double timeout_seconds, std::function<void()> interrupt)
    : segment_(name, rank, size, slot_bytes, create, timeout_seconds, std::move(interrupt)),
      rank_(rank),
      size_(size),
      part_(segment_.part_bytes()),
      sources_(static_cast<size_t>(size)) {}

template <typename Put, typename Read, typename Take>
void SharedGroup::run(const char* name, uint64_t call, int64_t chunks, Put put, Read read, Take take) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) throw std::runtime_error("a SharedGroup is used by two threads at once");
    segment_.enter(name);
    try {
        stream(call, chunks, put, read, take);
    } catch (...) {
        segment_.give_up();
        throw;
    }
}

void SharedGroup::publish(Segment::Counter counter, int64_t chunks) {
    segment_.count(counter, chunks);
    segment_.wake();
}

// Chunk by chunk: put into the own buffer, read the buffers of the others, take the results of the others. A chunk is
// put before the one before it is read, and that is read before the one before is taken: then a member waits only if
// another is behind by more than a step. Without `take`, nothing is left to do after reading.
template <typename Put, typename Read, typename Take>
void SharedGroup::stream(uint64_t call, int64_t chunks, Put put, Read read, Take take) {
    constexpr bool takes = !std::is_same_v<Take, std::nullptr_t>;
    const int64_t first = chunks_;
    const auto put_chunk = [&](int64_t k) {
        segment_.wait(Segment::read, first + k + 1 - Segment::kDepth);
        if (k == 0) segment_.state_call(first, call);
        put(k, first + k);
        publish(Segment::put, first + k + 1);
    };
    const auto take_chunk = [&](int64_t k) {
        if constexpr (takes) {
            segment_.wait(Segment::read, first + k + 1);
            take(k, first + k);
            publish(Segment::taken, first + k + 1);
        }
    };
    put_chunk(0);
    for (int64_t k = 0; k < chunks; ++k) {
        if (k + 1 < chunks) put_chunk(k + 1);
        segment_.wait(Segment::put, first + k + 1);
        if (k == 0) segment_.compare_calls(first);
        if constexpr (takes) segment_.wait(Segment::taken, first + k + 1 - Segment::kDepth);
        read(k, first + k);
        if constexpr (!takes) segment_.count(Segment::taken, first + k + 1);
        publish(Segment::read, first + k + 1);
        if (k > 0) take_chunk(k - 1);
    }
    take_chunk(chunks - 1);
    chunks_ = first + chunks;
}

void SharedGroup::all_reduce(void* data, int64_t count, Element element, Reduction reduction) {
    if (count == 0) return;
    if (count * bytes_of(element) <= std::min(kSmall, size_ * part_)) {
        all_reduce_small(static_cast<char*>(data), count, element, reduction);
    } else {
        all_reduce_large(static_cast<char*>(data), count, element, reduction);
    }
}

// Every member reads everything: more bytes, one wait.
void SharedGroup::all_reduce_small(char* data, int64_t count, Element element, Reduction reduction) {
    const int64_t bytes = count * bytes_of(element);
    const auto put = [&](int64_t, int64_t chunk) { std::memcpy(segment_.buffer(rank_, chunk), data, bytes); };
    const auto read = [&](int64_t, int64_t chunk) {
        for (int other = 0; other < size_; ++other) sources_[other] = segment_.buffer(other, chunk);
        reduce_elements(sources_.data(), size_, data, nullptr, count, element, reduction);
    };
    run("all-reduce", call_of(1, count, element, reduction), 1, put, read, nullptr);
}

// A member reduces its part of each chunk; it puts only the parts of the others and takes only their results.
void SharedGroup::all_reduce_large(char* data, int64_t count, Element element, Reduction reduction) {
    const int64_t item = bytes_of(element);
    const Chunks chunks(count, size_ * part_ / item, size_ * kLine / item);
    struct Range {
        int64_t begin, end;  // in bytes from the start of the chunk
        int64_t bytes() const { return end - begin; }
    };
    const auto part = [&](int64_t k, int owner) {
        const int64_t length = chunks.length(k) * item, share = round_up(divide_up(length, size_), kLine);
        return Range{std::min(length, owner * share), std::min(length, (owner + 1) * share)};
    };
    const auto start = [&](int64_t k) { return data + chunks.begin(k) * item; };
    const auto result = [&](int owner, int64_t chunk) { return segment_.buffer(owner, chunk) + size_ * part_; };

    const auto put = [&](int64_t k, int64_t chunk) {
        const Range mine = part(k, rank_);
        const int64_t length = chunks.length(k) * item;
        std::memcpy(segment_.buffer(rank_, chunk), start(k), mine.begin);
        std::memcpy(segment_.buffer(rank_, chunk) + mine.end, start(k) + mine.end, length - mine.end);
    };
    const auto read = [&](int64_t k, int64_t chunk) {
        const Range mine = part(k, rank_);
        for (int other = 0; other < size_; ++other) sources_[other] = segment_.buffer(other, chunk) + mine.begin;
        sources_[rank_] = start(k) + mine.begin;
        reduce_elements(sources_.data(), size_, start(k) + mine.begin, result(rank_, chunk), mine.bytes() / item,
                        element, reduction);
    };
    const auto take = [&](int64_t k, int64_t chunk) {
        for (int other = 0; other < size_; ++other) {
            const Range theirs = part(k, other);
            if (other != rank_) std::memcpy(start(k) + theirs.begin, result(other, chunk), theirs.bytes());
        }
    };
    run("all-reduce", call_of(1, count, element, reduction), chunks.count, put, read, take);
}

void SharedGroup::reduce_scatter(const void* in, void* out, int64_t count, Element element, Reduction reduction) {
    if (count == 0) return;
    const int64_t item = bytes_of(element), bytes = count * item;
    const char* input = static_cast<const char*>(in);
    char* output = static_cast<char*>(out);
    if (output != input + rank_ * bytes && overlap(output, bytes, input, size_ * bytes)) {
        throw std::invalid_argument("reduce_scatter: the output overlaps the input and is not this member's part");
    }
    const Chunks chunks(count, part_ / item, kLine / item);
    const auto put = [&](int64_t k, int64_t chunk) {
        for (int other = 0; other < size_; ++other) {
            if (other == rank_) continue;
            std::memcpy(segment_.buffer(rank_, chunk) + other * part_, input + (other * count + chunks.begin(k)) * item,
                        chunks.length(k) * item);
        }
    };
    const auto read = [&](int64_t k, int64_t chunk) {
        for (int other = 0; other < size_; ++other) sources_[other] = segment_.buffer(other, chunk) + rank_ * part_;
        sources_[rank_] = input + (rank_ * count + chunks.begin(k)) * item;
        reduce_elements(sources_.data(), size_, output + chunks.begin(k) * item, nullptr, chunks.length(k), element,
                        reduction);
    };
    run("reduce-scatter", call_of(2, count, element, reduction), chunks.count, put, read, nullptr);
}

void SharedGroup::all_gather(const void* in, void* out, int64_t bytes) {
    if (bytes == 0) return;
    const char* input = static_cast<const char*>(in);
    char* output = static_cast<char*>(out);
    if (input != output + rank_ * bytes && overlap(input, bytes, output, size_ * bytes)) {
        throw std::invalid_argument("all_gather: the input overlaps the output and is not this member's part");
    }
    const Chunks chunks(bytes, size_ * part_, kLine);
    const auto put = [&](int64_t k, int64_t chunk) {
        std::memcpy(segment_.buffer(rank_, chunk), input + chunks.begin(k), chunks.length(k));
    };
    const auto read = [&](int64_t k, int64_t chunk) {
        for (int other = 0; other < size_; ++other) {
            char* place = output + other * bytes + chunks.begin(k);
            const char* source = other == rank_ ? input + chunks.begin(k) : segment_.buffer(other, chunk);
            if (place != source) std::memcpy(place, source, chunks.length(k));
        }
    };
    run("all-gather", call_of(3, bytes, Element::bfloat16, Reduction::sum), chunks.count, put, read,
        nullptr);
}

void SharedGroup::barrier() {
    const auto nothing = [](int64_t, int64_t) {};
    run("barrier", call_of(4, 0, Element::bfloat16, Reduction::sum), 1, nothing, nothing, nullptr);
}

}  // namespace megatron

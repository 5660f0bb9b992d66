#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

namespace megatron {

constexpr int64_t kLine = 64;  // bytes of a cache line

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int64_t round_up(int64_t value, int64_t unit) { return divide_up(value, unit) * unit; }

// Memory that processes of one host share: a slot for each member, and counters to wait for.
//
// A member moves data through its slot chunk by chunk; the slot is a ring of buffers. Every member counts its chunks;
// counters only grow, so nothing is ever reset. A wait ends with std::runtime_error if a member does not arrive within
// the time limit, has died, or has given up itself; the message says which.
class SharedSegment {
  public:
    static constexpr int kDepth = 3;  // buffers of a slot: one is put, one read, one taken

    // Chunks that were put into the slot; of which the others' puts were read and the result written; of which the
    // others' results were taken.
    enum Counter : int { put = 0, read = 1, taken = 2 };

    // See SharedGroup.
    SharedSegment(const std::string& name, int rank, int size, int64_t slot_bytes, bool create,
                  double timeout_seconds, std::function<void()> interrupt);
    ~SharedSegment();
    SharedSegment(const SharedSegment&) = delete;
    SharedSegment& operator=(const SharedSegment&) = delete;

    int rank() const { return rank_; }
    int size() const { return size_; }
    int64_t part_bytes() const { return part_bytes_; }

    // Where a member's chunk is: room for a part of each member, and after those for one more.
    char* buffer(int rank, int64_t chunk) const;

    // What the operation is that begins with a chunk; compared once the others' chunk is there.
    void state_call(int64_t chunk, uint64_t call);
    void compare_calls(int64_t chunk);

    // An operation begins; it ends with an error, after which the others get one too.
    void enter(const char* operation);
    void give_up();

    void count(Counter counter, int64_t chunks);   // this member's chunks so far; sleepers notice at the next wake
    void wake();
    void wait(Counter counter, int64_t target);   // until all others have counted so far

  private:
    struct Member;
    struct Header;

    void map(bool create);
    Header& header() const;
    Member& member(int rank) const;
    void wait_for(int other, Counter counter, int64_t target);
    void look_at_missing(Counter counter, int64_t target);
    [[noreturn]] void fail_late(Counter counter, int64_t target);
    [[noreturn]] void fail(int culprit, const std::string& message);

    int rank_ = 0, size_ = 1;
    double timeout_seconds_ = 0.0;
    std::function<void()> interrupt_;
    std::string path_;
    int64_t part_bytes_ = 0;
    int64_t bytes_ = 0;  // of the mapping
    char* base_ = nullptr;
    int owner_ = 0;  // the process that made this object: after a fork the child must not speak for it
    bool spins_ = false;
    bool broken_ = false;
    const char* operation_ = "";
    int culprit_ = 0;
};

}  // namespace megatron

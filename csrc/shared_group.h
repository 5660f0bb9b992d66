#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "reduction.h"
#include "shared_segment.h"

namespace megatron {

// Collective operations between processes of one host through shared memory. All members call the same operations in
// the same order. Sums are in order of rank for every element, so they do not depend on sizes, chunks or timing.
// Errors are std::runtime_error: a member that does not arrive within the time limit, that has died or given up, or
// that calls another operation. After an error the group is of no use; the other members get an error too.
class SharedGroup {
  public:
    // The member 0 creates (create = true), then the others attach under the same name; the last one to attach removes
    // the name. slot_bytes of shared memory are used for each member. timeout_seconds: how long to wait for the others
    // in an operation. interrupt: called regularly while waiting; may throw.
    SharedGroup(const std::string& name, int rank, int size, int64_t slot_bytes, bool create, double timeout_seconds,
                std::function<void()> interrupt);

    void all_reduce(void* data, int64_t count, Element element, Reduction reduction);
    // in: count elements for each member; out: count elements, may be this member's part of `in`.
    void reduce_scatter(const void* in, void* out, int64_t count, Element element, Reduction reduction);
    // out: `bytes` of each member; in: `bytes`, may be this member's part of `out`.
    void all_gather(const void* in, void* out, int64_t bytes);
    void barrier();

    int rank() const { return rank_; }
    int size() const { return size_; }

  private:
    template <typename Put, typename Read, typename Take>
    void run(const char* name, uint64_t call, int64_t chunks, Put put, Read read, Take take);
    template <typename Put, typename Read, typename Take>
    void stream(uint64_t call, int64_t chunks, Put put, Read read, Take take);
    void publish(SharedSegment::Counter counter, int64_t chunks);
    void all_reduce_small(char* data, int64_t count, Element element, Reduction reduction);
    void all_reduce_large(char* data, int64_t count, Element element, Reduction reduction);

    SharedSegment segment_;
    int rank_, size_;
    int64_t part_;        // bytes: a buffer has room for a part of each member and for one result
    int64_t chunks_ = 0;  // of all operations so far
    std::mutex mutex_;    // of the operation that runs
    std::vector<const void*> sources_;
};

}  // namespace megatron

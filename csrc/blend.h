// Blending of corpora: which corpus, and which of its samples, is sample k of the blend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace megatron {

// Megatron's rule: sample k comes from the corpus with the largest weight * max(k, 1) - taken, ties to the first. So no
// corpus ever runs ahead of its share by a whole sample. Any k may be asked for at any time, from any thread: the rule
// is replayed from the nearest state kept, one every kStride samples and the most recent one.
class Blend {
  public:
    explicit Blend(std::vector<double> weights);  // positive, summing to 1

    // Corpus and number within the corpus of samples first .. first + count - 1.
    void assign(int64_t first, int64_t count, int32_t* corpus, int64_t* number);

    // Samples taken from each corpus among the first `count`.
    std::vector<int64_t> taken(int64_t count);

    size_t corpora() const { return weights_.size(); }

  private:
    static constexpr int64_t kStride = 1 << 14;

    std::vector<int64_t> state_at(int64_t k);  // taken before sample k

    const std::vector<double> weights_;
    std::vector<std::vector<int64_t>> checkpoints_;  // taken before sample 0, kStride, 2 kStride, ...
    int64_t recent_ = 0;                             // sample before which recent_taken_ holds
    std::vector<int64_t> recent_taken_;
    std::mutex mutex_;
};

}  // namespace megatron

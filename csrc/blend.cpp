#include "blend.h"

#include <algorithm>
#include <utility>

namespace megatron {
namespace {

size_t choose(const std::vector<double>& weights, const std::vector<int64_t>& taken, int64_t k) {
    const double total = static_cast<double>(std::max<int64_t>(k, 1));
    size_t best = 0;
    double best_deficit = weights[0] * total - static_cast<double>(taken[0]);
    for (size_t d = 1; d < weights.size(); ++d) {
        const double deficit = weights[d] * total - static_cast<double>(taken[d]);
        if (deficit > best_deficit) {
            best = d;
            best_deficit = deficit;
        }
    }
    return best;
}

}  // namespace

Blend::Blend(std::vector<double> weights)
    : weights_(std::move(weights)),
      checkpoints_{std::vector<int64_t>(weights_.size(), 0)},
      recent_taken_(weights_.size(), 0) {}

std::vector<int64_t> Blend::state_at(int64_t k) {
    if (weights_.size() == 1) return {k};
    std::lock_guard<std::mutex> lock(mutex_);
    if (k < recent_) {
        const size_t kept = std::min(static_cast<size_t>(k / kStride), checkpoints_.size() - 1);
        recent_ = static_cast<int64_t>(kept) * kStride;
        recent_taken_ = checkpoints_[kept];
    }
    for (; recent_ < k; ++recent_) {
        if (recent_ == static_cast<int64_t>(checkpoints_.size()) * kStride) checkpoints_.push_back(recent_taken_);
        ++recent_taken_[choose(weights_, recent_taken_, recent_)];
    }
    return recent_taken_;
}

void Blend::assign(int64_t first, int64_t count, int32_t* corpus, int64_t* number) {
    std::vector<int64_t> taken = state_at(first);
    for (int64_t i = 0; i < count; ++i) {
        const size_t chosen = choose(weights_, taken, first + i);
        corpus[i] = static_cast<int32_t>(chosen);
        number[i] = taken[chosen]++;
    }
}

std::vector<int64_t> Blend::taken(int64_t count) { return state_at(count); }

}  // namespace megatron

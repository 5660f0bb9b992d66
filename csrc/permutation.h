// A keyed permutation of [0, n), computed on the fly: a shuffle without an array.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "hash.h"

namespace megatron {

// Feistel network over the smallest power of two that holds n, walking cycles back into the range (Black and Rogaway
// 2002). Halves may differ by one bit, so fewer than two walks are needed on average; only a handful of elements are
// spread over more room, as six rounds over a few bits favour some orders. Requires n >= 1.
class Permutation {
  public:
    Permutation(uint64_t n, uint64_t key) : n_(n) {
        int bits = kFewestBits;
        while (bits < 63 && (uint64_t{1} << bits) < n) ++bits;
        low_bits_ = bits / 2;
        low_mask_ = (uint64_t{1} << low_bits_) - 1;
        high_mask_ = (uint64_t{1} << (bits - low_bits_)) - 1;
        for (std::size_t round = 0; round < keys_.size(); ++round) keys_[round] = combine(key, round);
    }

    // Image of i; requires i < n.
    uint64_t operator()(uint64_t i) const {
        do {
            uint64_t low = i & low_mask_, high = i >> low_bits_;
            for (std::size_t round = 0; round < keys_.size(); round += 2) {
                high ^= mix64(low ^ keys_[round]) & high_mask_;
                low ^= mix64(high ^ keys_[round + 1]) & low_mask_;
            }
            i = high << low_bits_ | low;
        } while (i >= n_);
        return i;
    }

  private:
    static constexpr int kFewestBits = 8;

    uint64_t n_, low_mask_, high_mask_;
    int low_bits_;
    std::array<uint64_t, 6> keys_;
};

}  // namespace megatron

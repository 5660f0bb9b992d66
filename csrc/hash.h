// Counter-based randomness: a random number is a hash of what it is for, so nothing has a state to save or replay.
#pragma once

#include <cstdint>

#include "kernels/portable.h"

namespace megatron {

// Finalizer of splitmix64 (Steele, Lea and Flood 2014, constants of Stafford's Mix13): a bijection of 64 bits.
MEGATRON_HD uint64_t mix64(uint64_t z) {
    z ^= z >> 30;
    z *= 0xBF58476D1CE4E5B9ull;
    z ^= z >> 27;
    z *= 0x94D049BB133111EBull;
    z ^= z >> 31;
    return z;
}

// "lowbias32"-style finalizer (hash-prospector): a bijection of 32 bits, cheap in vector registers.
MEGATRON_HD uint32_t mix32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    x ^= x >> 15;
    return x;
}

// A key for the pair (a, b): chain it to hash any number of parts.
inline uint64_t combine(uint64_t a, uint64_t b) { return mix64(mix64(a + 0x9E3779B97F4A7C15ull) ^ b); }

// A stream of random numbers: splitmix64 from a hashed key.
class Random {
  public:
    explicit Random(uint64_t key) : state_(key) {}

    uint64_t next() {
        state_ += 0x9E3779B97F4A7C15ull;
        return mix64(state_);
    }

    // Uniform in [0, n), n > 0. Multiply-shift: the bias is below n / 2^32 and no division is needed (Lemire 2019).
    uint32_t below(uint32_t n) { return static_cast<uint32_t>(((next() >> 32) * n) >> 32); }

    bool coin() { return next() >> 63; }

  private:
    uint64_t state_;
};

}  // namespace megatron

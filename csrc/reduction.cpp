#include "reduction.h"

#include <algorithm>
#include <cstring>

#include "clones.h"

// Templates must be inlined into the function that is compiled for several instruction sets.
#if defined(__GNUC__)
#define MEGATRON_INLINE inline __attribute__((always_inline))
#else
#define MEGATRON_INLINE inline
#endif

namespace megatron {
namespace {

constexpr int64_t kBlock = 512;  // elements whose partial results stay in the first-level cache

template <typename T>
struct Same {
    using Stored = T;
    using Wide = T;
    static MEGATRON_INLINE T load(T x) { return x; }
    static MEGATRON_INLINE T store(T x) { return x; }
};

struct BFloat16 {
    using Stored = uint16_t;
    using Wide = float;
    static MEGATRON_INLINE float load(uint16_t x) {
        const uint32_t wide = static_cast<uint32_t>(x) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
    static MEGATRON_INLINE uint16_t store(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
        const uint32_t quiet = (bits >> 16) | 0x40u;                            // a NaN stays a NaN
        return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
};

struct Sum {
    template <typename T>
    static MEGATRON_INLINE T apply(T a, T b) {
        return a + b;
    }
};

struct Max {
    template <typename T>
    static MEGATRON_INLINE T apply(T a, T b) {
        return b > a || b != b ? b : a;
    }
};

struct Min {
    template <typename T>
    static MEGATRON_INLINE T apply(T a, T b) {
        return b < a || b != b ? b : a;
    }
};

template <typename Format, typename Operation>
MEGATRON_INLINE void reduce(const void* const* sources, int n, void* out, void* copy, int64_t count) {
    using Stored = typename Format::Stored;
    using Wide = typename Format::Wide;
    Wide block[kBlock];
    for (int64_t start = 0; start < count; start += kBlock) {
        const int64_t length = std::min(kBlock, count - start);
        const Stored* first = static_cast<const Stored*>(sources[0]) + start;
        if (n == 1) {
            for (int64_t i = 0; i < length; ++i) block[i] = Format::load(first[i]);
        } else {
            const Stored* second = static_cast<const Stored*>(sources[1]) + start;
            for (int64_t i = 0; i < length; ++i) {
                block[i] = Operation::apply(Format::load(first[i]), Format::load(second[i]));
            }
        }
        for (int s = 2; s < n; ++s) {
            const Stored* source = static_cast<const Stored*>(sources[s]) + start;
            for (int64_t i = 0; i < length; ++i) block[i] = Operation::apply(block[i], Format::load(source[i]));
        }
        Stored* result = static_cast<Stored*>(out) + start;
        for (int64_t i = 0; i < length; ++i) result[i] = Format::store(block[i]);
        if (copy != nullptr) {
            std::memcpy(static_cast<Stored*>(copy) + start, result, static_cast<size_t>(length) * sizeof(Stored));
        }
    }
}

template <typename Format>
MEGATRON_INLINE void choose(const void* const* sources, int n, void* out, void* copy, int64_t count,
                            Reduction reduction) {
    switch (reduction) {
        case Reduction::sum: reduce<Format, Sum>(sources, n, out, copy, count); break;
        case Reduction::max: reduce<Format, Max>(sources, n, out, copy, count); break;
        case Reduction::min: reduce<Format, Min>(sources, n, out, copy, count); break;
    }
}

MEGATRON_CLONES
void reduce_float32(const void* const* sources, int n, void* out, void* copy, int64_t count, Reduction reduction) {
    choose<Same<float>>(sources, n, out, copy, count, reduction);
}

MEGATRON_CLONES
void reduce_bfloat16(const void* const* sources, int n, void* out, void* copy, int64_t count, Reduction reduction) {
    choose<BFloat16>(sources, n, out, copy, count, reduction);
}

MEGATRON_CLONES
void reduce_float64(const void* const* sources, int n, void* out, void* copy, int64_t count, Reduction reduction) {
    choose<Same<double>>(sources, n, out, copy, count, reduction);
}

MEGATRON_CLONES
void reduce_int64(const void* const* sources, int n, void* out, void* copy, int64_t count, Reduction reduction) {
    choose<Same<int64_t>>(sources, n, out, copy, count, reduction);
}

}  // namespace

void reduce_elements(const void* const* sources, int n, void* out, void* copy, int64_t count, Element element,
                     Reduction reduction) {
    switch (element) {
        case Element::float32: reduce_float32(sources, n, out, copy, count, reduction); break;
        case Element::bfloat16: reduce_bfloat16(sources, n, out, copy, count, reduction); break;
        case Element::float64: reduce_float64(sources, n, out, copy, count, reduction); break;
        case Element::int64: reduce_int64(sources, n, out, copy, count, reduction); break;
    }
}

}  // namespace megatron

#include "adamw.h"

#include <vector>

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

template <bool kCopy>
MEGATRON_HD void update(const AdamW& given, int64_t begin, int64_t end) {
    const AdamW a = given;  // a copy that no store can change
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
        const Updated now = updated(a, a.weights[i], a.first[i], a.second[i], a.gradients[i]);
        a.first[i] = now.first;
        a.second[i] = now.second;
        a.weights[i] = now.weight;
        if (kCopy) a.copy[i] = from_float<BFloat16>(now.weight);
    }
}

MEGATRON_CLONES void update_part(const AdamW& a, int64_t first, int64_t last) {
    if (a.copy == nullptr) {
        update<false>(a, first, last);
    } else {
        update<true>(a, first, last);
    }
}

// Eight chains of additions in fp64.
MEGATRON_CLONES double squares_part(const float* x, int64_t first, int64_t last) {
    double total = 0.0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = first; i < last; ++i) {
        const double value = x[i];
        total += value * value;
    }
    return total;
}

}  // namespace

void adamw(const AdamW& a, int threads) {
    over_parts(a.count, threads, [&](int64_t first, int64_t last, int) { update_part(a, first, last); });
}

double sum_of_squares(const float* x, int64_t count, int threads) {
    std::vector<double> parts(static_cast<size_t>(threads), 0.0);
    over_parts(count, threads, [&](int64_t first, int64_t last, int thread) {
        parts[static_cast<size_t>(thread)] = squares_part(x, first, last);
    });
    double total = 0.0;
    for (const double part : parts) total += part;
    return total;
}

}  // namespace megatron

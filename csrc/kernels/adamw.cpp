#include "adamw.h"

#include <vector>

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

MEGATRON_CLONES void update_part(const AdamW& a, int64_t first, int64_t last) {
    if (a.copy == nullptr) {
        adamw_stretch<false>(SerialLanes(), a, first, last);
    } else {
        adamw_stretch<true>(SerialLanes(), a, first, last);
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

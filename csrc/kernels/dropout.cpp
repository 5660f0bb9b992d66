#include "dropout.h"

#include "../clones.h"
#include "cpu.h"
#include "launchers.h"

namespace megatron {
namespace {

MEGATRON_CLONES void part(const Dropout<float>& a, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) dropout_row(SerialLanes(), a, row);
}

MEGATRON_CLONES void part(const Dropout<BFloat16>& a, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) dropout_row(SerialLanes(), a, row);
}

template <typename T>
void launch(const Dropout<T>& a, int threads) {
    over_parts(a.rows, threads, [&](int64_t first, int64_t last, int) { part(a, first, last); });
}

}  // namespace

void dropout(const Dropout<float>& a, int threads) { launch(a, threads); }
void dropout(const Dropout<BFloat16>& a, int threads) { launch(a, threads); }

}  // namespace megatron

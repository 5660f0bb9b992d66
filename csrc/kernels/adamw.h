// AdamW (Loshchilov and Hutter, arXiv 1711.05101) on flat fp32 arrays, with what goes before and after it in one pass:
// the gradient's factor (clipping, loss scale) and the copy of the weights in bf16.
#pragma once

#include <cmath>

#include "portable.h"

namespace megatron {

struct AdamW {
    int64_t count;
    float *weights, *first, *second;  // first and second moment
    const float* gradients;
    BFloat16* copy;  // may be null
    float factor, learning_rate, decay, beta2, epsilon;
    float rest1, rest2;  // 1 - beta1, 1 - beta2: of betas in fp32 they would have lost digits
    float correction1, correction2;  // 1 - beta1^step, sqrt(1 - beta2^step)
};

template <bool kCopy, typename Lanes>
MEGATRON_HD void adamw_stretch(const Lanes& lanes, const AdamW& a, int64_t begin, int64_t end) {
    float *weights = a.weights + begin, *first = a.first + begin, *second = a.second + begin;
    const float* gradients = a.gradients + begin;
    BFloat16* copy = kCopy ? a.copy + begin : nullptr;
    const float kept = 1.0f - a.learning_rate * a.decay, rate = a.learning_rate / a.correction1;
    const float beta2 = a.beta2, rest1 = a.rest1, rest2 = a.rest2, epsilon = a.epsilon, factor = a.factor;
    const float correction2 = a.correction2;
    lanes.each(end - begin, [&](int64_t i, int64_t) {
        const float g = gradients[i] * factor;
        const float m = first[i] + (g - first[i]) * rest1;
        const float v = second[i] * beta2 + rest2 * g * g;
        const float w = weights[i] * kept - rate * m / (sqrtf(v) / correction2 + epsilon);
        first[i] = m;
        second[i] = v;
        weights[i] = w;
        if (kCopy) copy[i] = from_float<BFloat16>(w);
    });
}

}  // namespace megatron

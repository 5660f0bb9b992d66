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

struct Updated {
    float weight, first, second;
};

MEGATRON_HD Updated updated(const AdamW& a, float weight, float first, float second, float gradient) {
    const float g = gradient * a.factor;
    const float m = first + (g - first) * a.rest1;
    const float v = second * a.beta2 + a.rest2 * g * g;
    const float kept = 1.0f - a.learning_rate * a.decay, rate = a.learning_rate / a.correction1;
    return {weight * kept - rate * m / (sqrtf(v) / a.correction2 + a.epsilon), m, v};
}

}  // namespace megatron

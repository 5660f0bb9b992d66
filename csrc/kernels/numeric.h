// Functions of one number in fp32, without branches so that loops over them become vectors, equal on every device.
#pragma once

#include <cmath>

#include "portable.h"

namespace megatron {

// e^x to about one unit in the last place; 0 below -87.3, infinite above 88.3. Cody-Waite reduction, minimax polynomial.
MEGATRON_HD float exponential(float x) {
    const float bounded = x > 88.7f ? 88.7f : (x < -87.3f ? -87.3f : x);
    const float shifted = bounded * 1.44269504f + 12582912.0f;  // the sum's low bits are the nearest integer
    const float n = shifted - 12582912.0f;
    const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.38146124e-3f;
    p = p * r + 8.3687099e-3f;
    p = p * r + 4.16683874e-2f;
    p = p * r + 1.66665207e-1f;
    p = p * r + 4.99999935e-1f;
    p = p * r * r + r + 1.0f;
    const float power = bits_to_float((float_to_bits(shifted) << 23) + 0x3f800000u);
    return x < -87.3f ? 0.0f : p * power;
}

// The standard normal density without its factor, e^(-x^2 / 2), and the distribution function.
struct Normal {
    float bell;
    float distribution;
};

// The tail is bell * g(t), t = 1 / (1 + 0.26 |x|) (the form of Abramowitz and Stegun 7.1.26): 4e-7 relative, so far
// negative values keep their digits.
MEGATRON_HD Normal normal(float x) {
    const float magnitude = x < 0.0f ? -x : x;
    const float t = 1.0f / (1.0f + 0.26f * magnitude);
    float g = 0.0305047967f;
    g = g * t - 0.152828435f;
    g = g * t + 0.251490564f;
    g = g * t - 0.15094822f;
    g = g * t + 0.160947397f;
    g = g * t + 0.0510278563f;
    g = g * t + 0.103030214f;
    g = g * t + 0.103016756f;
    g = g * t + 0.10375906f;
    const float bell = exponential(-0.5f * x * x);
    const float tail = bell * g * t;
    return {bell, x < 0.0f ? tail : 1.0f - tail};
}

MEGATRON_HD float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

enum class Activation : int { gelu = 0, gelu_tanh = 1, relu = 2 };

// gelu: x times the normal distribution function; gelu_tanh: its approximation by tanh (arXiv 1606.08415).
template <Activation kind>
MEGATRON_HD float activated(float x) {
    if (kind == Activation::relu) return x <= 0.0f ? 0.0f : x;  // a NaN stays
    if (kind == Activation::gelu) return x * normal(x).distribution;
    return x * logistic(1.5957691216f * (x + 0.044715f * x * x * x));
}

template <Activation kind>
MEGATRON_HD float activated_slope(float x) {
    if (kind == Activation::relu) return x <= 0.0f ? 0.0f : 1.0f;
    if (kind == Activation::gelu) {
        const Normal at = normal(x);
        return at.distribution + 0.3989422804f * x * at.bell;
    }
    const float e = exponential(-1.5957691216f * (x + 0.044715f * x * x * x)), s = 1.0f / (1.0f + e);
    const float rest = s < 0.5f ? 1.0f - s : e * s;  // 1 - s with all its digits
    return s + x * s * rest * 1.5957691216f * (1.0f + 0.134145f * x * x);
}

}  // namespace megatron

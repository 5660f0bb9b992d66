// The attention kernel compiled for several instruction sets; attention.cpp chooses when the program runs. What the
// compiler does not know is left out: other compilers and machines have the portable one alone.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention_task.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define MEGATRON_X86_TARGETS
#include <immintrin.h>
#endif

namespace megatron {

// Before any of these runs, its instructions are known to exist; the standard library's functions above were compiled
// without them.
#ifdef MEGATRON_X86_TARGETS
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#define MEGATRON_VECTOR_BYTES 64
#define MEGATRON_BFLOAT16_PAIRS
namespace avx512_bf16 {
#include "attention_vectors.h"
#include "attention_products.h"
#include "attention_heads.h"
}  // namespace avx512_bf16
#undef MEGATRON_BFLOAT16_PAIRS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace avx512 {
#include "attention_vectors.h"
#include "attention_products.h"
#include "attention_heads.h"
}  // namespace avx512
#undef MEGATRON_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define MEGATRON_VECTOR_BYTES 32
namespace avx2 {
#include "attention_vectors.h"
#include "attention_products.h"
#include "attention_heads.h"
}  // namespace avx2
#undef MEGATRON_VECTOR_BYTES
#pragma GCC pop_options
#endif

#define MEGATRON_VECTOR_BYTES 16
namespace portable {
#include "attention_vectors.h"
#include "attention_products.h"
#include "attention_heads.h"
}  // namespace portable
#undef MEGATRON_VECTOR_BYTES

const std::vector<AttentionKernel>& attention_kernels() {
    static const std::vector<AttentionKernel> kernels = [] {
        std::vector<AttentionKernel> found;
#ifdef MEGATRON_X86_TARGETS
        __builtin_cpu_init();
        const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (has_avx512 && __builtin_cpu_supports("avx512bf16")) {
            found.push_back({"avx512_bf16", avx512::forward<float, avx512::FloatProduct>,
                             avx512::backward<float, avx512::FloatProduct>,
                             avx512_bf16::forward<BFloat16, avx512_bf16::PairProduct>,
                             avx512_bf16::backward<BFloat16, avx512_bf16::PairProduct>});
        }
        if (has_avx512) {
            found.push_back({"avx512", avx512::forward<float, avx512::FloatProduct>,
                             avx512::backward<float, avx512::FloatProduct>,
                             avx512::forward<BFloat16, avx512::FloatProduct>,
                             avx512::backward<BFloat16, avx512::FloatProduct>});
        }
        if (has_avx2) {
            found.push_back({"avx2", avx2::forward<float, avx2::FloatProduct>,
                             avx2::backward<float, avx2::FloatProduct>, avx2::forward<BFloat16, avx2::FloatProduct>,
                             avx2::backward<BFloat16, avx2::FloatProduct>});
        }
#endif
        found.push_back({"portable", portable::forward<float, portable::FloatProduct>,
                         portable::backward<float, portable::FloatProduct>,
                         portable::forward<BFloat16, portable::FloatProduct>,
                         portable::backward<BFloat16, portable::FloatProduct>});
        return found;
    }();
    return kernels;
}

}  // namespace megatron

// Attention of one head of one sample, forward and backward.
// No include guard: attention_targets.cpp includes this once for each instruction set, in a namespace of its own.
//
// Blocks of queries against all keys, so that a row of scores is complete when its softmax is taken, and only a block
// of rows exists at a time. The backward computes them again from the inputs (as FlashAttention does; Dao et al. 2022).

constexpr int64_t kBlockScores = 16384;  // elements of a block, for the second-level cache
constexpr int64_t kMostBlockRows = 16 * kTileRows;

inline int64_t block_rows(int64_t tokens) {
    return std::clamp(round_up(kBlockScores / tokens, kTileRows), 4 * kTileRows, kMostBlockRows);
}

// Rows of scores are a little longer than needed: at a power of two a column would fall into few lines of the cache.
inline int64_t score_stride(int64_t tokens) { return round_up(tokens, kLanes) + 16; }

struct Softmax {
    int64_t tokens;  // columns that count
    float scale;
    float inverse_keep;

    int64_t columns() const { return round_up(tokens, kLanes); }

    // Largest of a row; what lies behind its end becomes minus infinity.
    float close(float* scores) const {
        for (int64_t c = tokens; c < columns(); ++c) scores[c] = -std::numeric_limits<float>::infinity();
        Vec largest = load(scores);
        for (int64_t c = kLanes; c < columns(); c += kLanes) {
            const Vec x = load(scores + c);
            largest = x > largest ? x : largest;
        }
        return maximum(largest);
    }
};

template <bool kDropout>
RowMask mask_of(const AttentionTask& task, int64_t query) {
    return {kDropout && query < task.tokens ? row_key(task.dropout, query) : RowKey(0), task.dropout.threshold};
}

// exp(scale * (score - largest)) in place, 0 where dropped. Returns what makes probabilities after dropout of them.
template <bool kDropout>
float exponentials(const Softmax& softmax, float* scores, const AttentionTask& task, int64_t query) {
    const RowMask mask = mask_of<kDropout>(task, query);
    const float largest = softmax.close(scores);
    Vec total{};
    for (int64_t c = 0; c < softmax.columns(); c += kLanes) {
        Vec x = exponential((load(scores + c) - largest) * softmax.scale);
        total += x;
        if constexpr (kDropout) x = mask.kept(c) ? x : Vec{};
        store(scores + c, x);
    }
    return softmax.inverse_keep / sum(total);
}

struct RowSums {
    float inverse;  // of the exponentials' sum
    float delta;    // of probabilities times their gradients
};

// scores: the exponentials in place, negative where dropped. gradients: of the probabilities after dropout to those
// before, in place.
template <bool kDropout>
RowSums exponentials_and_gradients(const Softmax& softmax, float* scores, float* gradients, const AttentionTask& task,
                                   int64_t query) {
    const RowMask mask = mask_of<kDropout>(task, query);
    const float largest = softmax.close(scores);
    Vec total{}, delta{};
    for (int64_t c = 0; c < softmax.columns(); c += kLanes) {
        Vec x = exponential((load(scores + c) - largest) * softmax.scale);
        Vec gradient = load(gradients + c);
        total += x;
        if constexpr (kDropout) {
            const auto kept = mask.kept(c);
            gradient = kept ? gradient * softmax.inverse_keep : Vec{};
            delta += x * gradient;
            x = kept ? x : -x;
            store(gradients + c, gradient);
        } else {
            delta += x * gradient;
        }
        store(scores + c, x);
    }
    const float inverse = 1.0f / sum(total);
    return {inverse, sum(delta) * inverse};
}

struct RowResult {
    Vec probabilities;    // after dropout
    Vec score_gradients;  // of the products of query and key
};

inline RowResult finish(const Softmax& softmax, const RowSums& sums, Vec x, Vec gradient) {
    const Vec kept = x * (sums.inverse * softmax.inverse_keep);
    const Vec magnitude = (Vec)((Words)x & 0x7fffffffu) * sums.inverse;
    return {kept < 0.0f ? Vec{} : kept, magnitude * (gradient - sums.delta) * softmax.scale};
}

// The left operand of a product.
struct Operand {
    const Word* words;
    int64_t stride;
};

// A block after its softmax, as the products of the backward take it: rows of score gradients, and both matrices
// across (summed over rows).
struct BlockOperands {
    Operand gradients, probabilities_across, gradients_across;
};

inline Operand in_place(const float* x, int64_t stride) { return {reinterpret_cast<const Word*>(x), stride}; }

inline Operand probability_rows(FloatProduct, AttentionScratch&, const Softmax&, const float* scores, int64_t,
                                int64_t stride) {
    return in_place(scores, stride);
}

inline BlockOperands finish_block(FloatProduct, AttentionScratch&, const Softmax& softmax, const RowSums* sums,
                                  float* scores, float* gradients, int64_t rows, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t at = r * stride; at < r * stride + softmax.columns(); at += kLanes) {
            const RowResult result = finish(softmax, sums[r], load(scores + at), load(gradients + at));
            store(scores + at, result.probabilities);
            store(gradients + at, result.score_gradients);
        }
    }
    return {in_place(gradients, stride), in_place(scores, stride), in_place(gradients, stride)};
}

#ifdef MEGATRON_BFLOAT16_PAIRS
inline __m256i to_bfloat16(Vec x) { return (__m256i)_mm512_cvtneps_pbh((__m512)x); }

typedef uint16_t Halves __attribute__((vector_size(MEGATRON_VECTOR_BYTES / 2)));

inline Words pairs(__m256i even, __m256i odd) {
    return __builtin_convertvector((Halves)even, Words) | __builtin_convertvector((Halves)odd, Words) << 16;
}

inline Operand probability_rows(PairProduct, AttentionScratch& scratch, const Softmax& softmax, const float* scores,
                                int64_t rows, int64_t stride) {
    Word* out = scratch.probabilities.words<uint32_t>(round_up(rows, kTileRows) * stride / 2);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < softmax.columns(); c += kLanes) {
            _mm256_store_si256((__m256i*)(out + (r * stride + c) / 2), to_bfloat16(load(scores + r * stride + c)));
        }
    }
    return {out, stride / 2};
}

// Reads and writes an even number of rows: one that is no query was given zeros, and so it adds nothing.
inline BlockOperands finish_block(PairProduct, AttentionScratch& scratch, const Softmax& softmax, const RowSums* sums,
                                  float* scores, float* gradients, int64_t rows, int64_t stride) {
    const int64_t padded = round_up(rows, kTileRows);
    Word* out = scratch.gradient_halves.words<uint32_t>(padded * stride / 2);
    Word* probabilities_across = scratch.probabilities.words<uint32_t>(padded * stride / 2);
    Word* gradients_across = scratch.gradient_pairs.words<uint32_t>(padded * stride / 2);
    for (int64_t r = 0; r < rows; r += 2) {
        for (int64_t c = 0; c < softmax.columns(); c += kLanes) {
            const int64_t even = r * stride + c, odd = even + stride, across = r / 2 * stride + c;
            const RowResult a = finish(softmax, sums[r], load(scores + even), load(gradients + even));
            const RowResult b = finish(softmax, sums[r + 1], load(scores + odd), load(gradients + odd));
            const __m256i gradient_a = to_bfloat16(a.score_gradients), gradient_b = to_bfloat16(b.score_gradients);
            _mm256_store_si256((__m256i*)(out + even / 2), gradient_a);
            _mm256_store_si256((__m256i*)(out + odd / 2), gradient_b);
            store(gradients_across + across, pairs(gradient_a, gradient_b));
            store(probabilities_across + across, pairs(to_bfloat16(a.probabilities), to_bfloat16(b.probabilities)));
        }
    }
    return {{out, stride / 2}, {probabilities_across, stride}, {gradients_across, stride}};
}
#endif

// Rows of sums to elements.
template <typename Element>
void write_rows(const float* x, int64_t x_stride, int64_t rows, int64_t size, Element* out, int64_t out_stride) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < size; ++c) out[r * out_stride + c] = from_float<Element>(x[r * x_stride + c]);
    }
}

template <typename Element>
void write_zeros(const AttentionTask& task, int64_t size, Element* out, int64_t stride) {
    for (int64_t t = task.tokens; t < task.sequence; ++t) std::fill_n(out + t * stride, size, Element{});
}

template <typename Element, class Product, bool kDropout>
void forward(const AttentionTask& task, AttentionScratch& scratch) {
    const int64_t n = task.tokens, size = task.size, width = round_up(size, kLanes), stride = score_stride(n);
    const int64_t size_words = words_of<Product>(size), token_words = words_of<Product>(n);
    const auto* query = static_cast<const Element*>(task.qkv);
    auto* context = static_cast<Element*>(task.output);
    write_zeros(task, size, context, task.context_stride);
    if (n == 0) return;
    const int64_t block = block_rows(n);

    Word* rows = scratch.rows.words<uint32_t>(round_up(n, kTileRows) * size_words);
    Word* keys_across = scratch.keys_across.words<uint32_t>(round_up(n, kLanes) * size_words);
    Word* value_panels = scratch.value_panels.words<uint32_t>(token_words * width);
    pack_rows<Product>(query + size, task.qkv_stride, n, size, rows);
    transpose_to_panels(rows, n, size_words, keys_across);
    pack_panels<Product>(query + 2 * size, task.qkv_stride, n, size, value_panels);

    float* scores = scratch.scores.words<float>(block * stride);
    float* result = scratch.result.words<float>(block * width);
    const Softmax softmax{n, 1.0f / std::sqrt(static_cast<float>(size)), kDropout ? task.dropout.scale : 1.0f};
    float factors[kMostBlockRows];
    for (int64_t first = 0; first < n; first += block) {
        const int64_t count = std::min(block, n - first);
        pack_rows<Product>(query + first * task.qkv_stride, task.qkv_stride, count, size, rows);
        multiply<Product, false>(rows, size_words, count, keys_across, n, size_words, scores, stride, false);
        for (int64_t r = 0; r < count; ++r) {
            factors[r] = exponentials<kDropout>(softmax, scores + r * stride, task, first + r);
        }
        const Operand probabilities = probability_rows(Product{}, scratch, softmax, scores, count, stride);
        multiply<Product, false>(probabilities.words, probabilities.stride, count, value_panels, size, token_words,
                                 result, width, false);
        for (int64_t r = 0; r < count; ++r) {
            for (int64_t c = 0; c < width; c += kLanes) {
                float* at = result + r * width + c;
                store(at, load(at) * factors[r]);
            }
        }
        write_rows(result, width, count, size, context + first * task.context_stride, task.context_stride);
    }
}

template <typename Element, class Product, bool kDropout>
void backward(const AttentionTask& task, AttentionScratch& scratch) {
    const int64_t n = task.tokens, size = task.size, width = round_up(size, kLanes), stride = score_stride(n);
    const int64_t size_words = words_of<Product>(size), token_words = words_of<Product>(n);
    const auto* query = static_cast<const Element*>(task.qkv);
    const auto* context_gradient = static_cast<const Element*>(task.context_gradient);
    auto* output = static_cast<Element*>(task.output);
    write_zeros(task, 3 * size, output, task.qkv_stride);
    if (n == 0) return;
    const int64_t block = block_rows(n);

    Word* rows = scratch.rows.words<uint32_t>(round_up(n, kTileRows) * size_words);
    Word* keys_across = scratch.keys_across.words<uint32_t>(round_up(n, kLanes) * size_words);
    Word* values_across = scratch.values_across.words<uint32_t>(round_up(n, kLanes) * size_words);
    Word* key_panels = scratch.key_panels.words<uint32_t>(token_words * width);
    pack_rows<Product>(query + size, task.qkv_stride, n, size, rows);
    transpose_to_panels(rows, n, size_words, keys_across);
    pack_rows<Product>(query + 2 * size, task.qkv_stride, n, size, rows);
    transpose_to_panels(rows, n, size_words, values_across);
    pack_panels<Product>(query + size, task.qkv_stride, n, size, key_panels);

    float* scores = scratch.scores.words<float>(block * stride);
    float* gradients = scratch.gradients.words<float>(block * stride);
    float* result = scratch.result.words<float>(block * width);
    float* key_sums = scratch.key_sums.words<float>(round_up(n, kTileRows) * width);
    float* value_sums = scratch.value_sums.words<float>(round_up(n, kTileRows) * width);
    Word* panels = scratch.panels.words<uint32_t>(block * width);
    const Softmax softmax{n, 1.0f / std::sqrt(static_cast<float>(size)), kDropout ? task.dropout.scale : 1.0f};
    RowSums sums[kMostBlockRows];
    for (int64_t first = 0; first < n; first += block) {
        const int64_t count = std::min(block, n - first), count_words = words_of<Product>(count);
        const int64_t whole = count_words * Product::kPair;
        const Element* block_query = query + first * task.qkv_stride;
        const Element* block_gradient = context_gradient + first * task.context_stride;
        pack_rows<Product>(block_query, task.qkv_stride, count, size, rows);
        multiply<Product, false>(rows, size_words, whole, keys_across, n, size_words, scores, stride, false);
        pack_rows<Product>(block_gradient, task.context_stride, count, size, rows);
        multiply<Product, false>(rows, size_words, whole, values_across, n, size_words, gradients, stride, false);
        for (int64_t r = 0; r < whole; ++r) {
            sums[r] = exponentials_and_gradients<kDropout>(softmax, scores + r * stride, gradients + r * stride, task,
                                                           first + r);
        }
        const BlockOperands operands =
            finish_block(Product{}, scratch, softmax, sums, scores, gradients, count, stride);

        multiply<Product, false>(operands.gradients.words, operands.gradients.stride, count, key_panels, size,
                                 token_words, result, width, false);
        write_rows(result, width, count, size, output + first * task.qkv_stride, task.qkv_stride);
        pack_panels<Product>(block_query, task.qkv_stride, count, size, panels);
        multiply<Product, true>(operands.gradients_across.words, operands.gradients_across.stride, n, panels, size,
                                count_words, key_sums, width, first > 0);
        pack_panels<Product>(block_gradient, task.context_stride, count, size, panels);
        multiply<Product, true>(operands.probabilities_across.words, operands.probabilities_across.stride, n, panels,
                                size, count_words, value_sums, width, first > 0);
    }
    write_rows(key_sums, width, n, size, output + size, task.qkv_stride);
    write_rows(value_sums, width, n, size, output + 2 * size, task.qkv_stride);
}

template <typename Element, class Product>
void forward(const AttentionTask& task, AttentionScratch& scratch) {
    if (task.dropout.keys != nullptr) {
        forward<Element, Product, true>(task, scratch);
    } else {
        forward<Element, Product, false>(task, scratch);
    }
}

template <typename Element, class Product>
void backward(const AttentionTask& task, AttentionScratch& scratch) {
    if (task.dropout.keys != nullptr) {
        backward<Element, Product, true>(task, scratch);
    } else {
        backward<Element, Product, false>(task, scratch);
    }
}

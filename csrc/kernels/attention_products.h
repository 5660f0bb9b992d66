// Matrix products from packed operands: rows of words on the left, panels of columns on the right.
// No include guard: attention_targets.cpp includes this once for each instruction set, in a namespace of its own.

constexpr int64_t kTileRows = 6;
constexpr int kTileVectors = MEGATRON_VECTOR_BYTES == 64 ? 4 : 2;  // what the registers hold beside 6 rows
constexpr int64_t kPanel = kTileVectors * kLanes;
constexpr int64_t kDepth = 64;

// Words are floats.
struct FloatProduct {
    static constexpr int64_t kPair = 1;
    static Vec add(Vec sum, Words a, Words b) { return sum + (Vec)a * (Vec)b; }
    template <typename Element>
    static Word word(const Element* x, const Element*) {
        const float value = to_float(*x);
        Word bits;
        std::memcpy(&bits, &value, sizeof bits);
        return bits;
    }
    static void row(const float* x, int64_t size, Word* out) { std::memcpy(out, x, static_cast<size_t>(size) * 4); }
    static void row(const BFloat16* x, int64_t size, Word* out) {
        for (int64_t i = 0; i < size; ++i) out[i] = word(x + i, x + i);
    }
};

#ifdef MEGATRON_BFLOAT16_PAIRS
// Words are pairs of bf16; both products are added in fp32.
struct PairProduct {
    static constexpr int64_t kPair = 2;
    static Vec add(Vec sum, Words a, Words b) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
    static Word word(const BFloat16* x, const BFloat16* next) {
        return static_cast<uint32_t>(*x) | static_cast<uint32_t>(*next) << 16;
    }
    static void row(const BFloat16* x, int64_t size, Word* out) {
        out[(size - 1) / 2] = 0;
        std::memcpy(out, x, static_cast<size_t>(size) * 2);
    }
};
#endif

// Words of `size` elements that are summed over.
template <class Product>
constexpr int64_t words_of(int64_t size) {
    return (size + Product::kPair - 1) / Product::kPair;
}

// [rows, size] elements to [round_up(rows, kTileRows), words_of(size)], filled up with 0.
template <class Product, typename Element>
void pack_rows(const Element* x, int64_t stride, int64_t rows, int64_t size, Word* out) {
    const int64_t words = words_of<Product>(size);
    for (int64_t r = 0; r < rows; ++r, x += stride, out += words) Product::row(x, size, out);
    std::memset(out, 0, static_cast<size_t>((round_up(rows, kTileRows) - rows) * words) * 4);
}

// [rows, words] packed rows to panels of their columns: of [words, round_up(rows, kLanes)] each kPanel columns after
// the other, filled up with 0.
inline void transpose_to_panels(const Word* x, int64_t rows, int64_t words, Word* out) {
    const int64_t columns = round_up(rows, kLanes);
    for (int64_t first = 0; first < columns; first += kPanel) {
        const int64_t width = std::min(kPanel, columns - first), filled = std::min(width, rows - first);
        for (int64_t w = 0; w < words; ++w, out += width) {
            const Word* column = x + first * words + w;
            for (int64_t c = 0; c < filled; ++c) out[c] = column[c * words];
            for (int64_t c = filled; c < width; ++c) out[c] = 0;
        }
    }
}

// [rows, size] elements, summed over rows, to panels of [words_of(rows), round_up(size, kLanes)], filled up with 0.
template <class Product, typename Element>
void pack_panels(const Element* x, int64_t stride, int64_t rows, int64_t size, Word* out) {
    const int64_t columns = round_up(size, kLanes);
    for (int64_t first = 0; first < columns; first += kPanel) {
        const int64_t width = std::min(kPanel, columns - first), filled = std::min(width, size - first);
        for (int64_t r = 0; r < rows; r += Product::kPair, out += width) {
            const Element* row = x + r * stride + first;
            if (r + Product::kPair <= rows) {
                const Element* next = row + (Product::kPair - 1) * stride;
                for (int64_t c = 0; c < filled; ++c) out[c] = Product::word(row + c, next + c);
            } else {
                const Element zero{};
                for (int64_t c = 0; c < filled; ++c) out[c] = Product::word(row + c, &zero);
            }
            for (int64_t c = filled; c < width; ++c) out[c] = 0;
        }
    }
}

// c[kTileRows, vectors] (+)= a b, with a[r, k] at a[r * lda + k], or at a[k * lda + r] where kAcross.
template <class Product, bool kAcross, int kVectors>
void tile(const Word* a, int64_t lda, const Word* b, int64_t depth, float* c, int64_t ldc, bool accumulate) {
    Vec sums[kTileRows][kVectors] = {};
    for (int64_t k = 0; k < depth; ++k, b += kVectors * kLanes) {
        Words columns[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 8
        for (int64_t r = 0; r < kTileRows; ++r) {
            const Words x = Words{} + (kAcross ? a[k * lda + r] : a[r * lda + k]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[r][v] = Product::add(sums[r][v], x, columns[v]);
        }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < kTileRows; ++r, c += ldc) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            store(c + v * kLanes, accumulate ? load(c + v * kLanes) + sums[r][v] : sums[r][v]);
        }
    }
}

// c[rows, columns] (+)= a b for panels b; rows up to the next multiple of kTileRows and columns up to the next multiple
// of kLanes are read and written too. Sums of kDepth are added to each other: a part of a panel stays in the
// first-level cache, and the rounding error of a long sum is that of its short parts.
template <class Product, bool kAcross>
void multiply(const Word* a, int64_t lda, int64_t rows, const Word* b, int64_t columns, int64_t depth, float* c,
              int64_t ldc, bool accumulate) {
    columns = round_up(columns, kLanes);
    for (int64_t first = 0; first < columns; first += kPanel) {
        const int64_t width = std::min(kPanel, columns - first);
        for (int64_t k = 0; k < depth; k += kDepth) {
            const int64_t part = std::min(kDepth, depth - k);
            const bool add = accumulate || k > 0;
            for (int64_t r = 0; r < rows; r += kTileRows) {
                const Word* left = kAcross ? a + k * lda + r : a + r * lda + k;
                float* out = c + r * ldc + first;
                switch (width / kLanes) {
                    case 1: tile<Product, kAcross, 1>(left, lda, b, part, out, ldc, add); break;
                    case 2: tile<Product, kAcross, 2>(left, lda, b, part, out, ldc, add); break;
#if MEGATRON_VECTOR_BYTES == 64
                    case 3: tile<Product, kAcross, 3>(left, lda, b, part, out, ldc, add); break;
                    case 4: tile<Product, kAcross, 4>(left, lda, b, part, out, ldc, add); break;
#endif
                }
            }
            b += part * width;
        }
    }
}

#include "assembly.h"

#include <algorithm>
#include <bitset>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "hash.h"
#include "permutation.h"

namespace megatron {
namespace {

struct Piece {
    int64_t token;  // in the corpus
    int64_t length;
};

// What one call needs, allocated once: a sample has at most seq_length words.
struct Scratch {
    explicit Scratch(int64_t seq_length)
        : word_starts(seq_length + 2), order(seq_length), masked(seq_length) {}

    std::vector<Piece> pieces, others;  // of the sample's own row, and of the row whose second segment it has
    std::vector<uint32_t> word_starts;  // columns; the entry after a segment's last word is where the segment ends
    std::vector<uint32_t> order;
    std::vector<uint8_t> masked;
};

// The words of a segment: word_starts[first .. last), followed by the end of the segment.
struct Segment {
    int64_t first, last;
};

// The pieces of a segment before truncation.
struct Run {
    const Piece *begin, *end;
    int64_t tokens() const {
        return std::accumulate(begin, end, int64_t{0}, [](int64_t sum, const Piece& p) { return sum + p.length; });
    }
};

struct Runs {
    Run side[2];
    bool label;  // of the sentence objective
};

[[noreturn]] void fail_damaged() { throw std::runtime_error("the sample index is damaged"); }

// How many of n coins show heads.
int64_t heads(int64_t n, Random& random) {
    int64_t count = 0;
    for (; n >= 64; n -= 64) count += static_cast<int64_t>(std::bitset<64>(random.next()).count());
    if (n > 0) count += static_cast<int64_t>(std::bitset<64>(random.next() >> (64 - n)).count());
    return count;
}

// Tokens to take from segments of a and b tokens so that `target` remain: one at a time from the longer, b on ties.
std::pair<int64_t, int64_t> excess(int64_t a, int64_t b, int64_t target) {
    const int64_t surplus = a + b - target;
    if (surplus <= 0) return {0, 0};
    const int64_t levelled = std::min(surplus, std::abs(a - b));
    const int64_t shared = surplus - levelled;
    return {(a > b ? levelled : 0) + shared / 2, (a > b ? 0 : levelled) + (shared + 1) / 2};
}

// log2 of the bytes of a token.
int shift_of(TokenType type) {
    switch (type) {
        case TokenType::uint8: case TokenType::int8: return 0;
        case TokenType::int16: case TokenType::uint16: return 1;
        case TokenType::int32: return 2;
        case TokenType::int64: return 3;
    }
    return 0;
}

void gather_pieces(const SampleSource& source, const SampleRow& row, const PieceRule& rule, int token_shift,
                   std::vector<Piece>& pieces) {
    pieces.clear();
    if (row.pieces < rule.fewest) fail_damaged();
    int64_t sentence = row.sentence(), offset = row.offset;
    while (pieces.size() < row.pieces) {
        if (sentence >= source.sentences) fail_damaged();
        const int64_t size = source.sizes[sentence];
        const int64_t step = rule.length(size);
        const int64_t start = source.pointers[sentence] >> token_shift;
        for (; offset < size && pieces.size() < row.pieces; offset += step) {
            pieces.push_back({start + offset, std::min(step, size - offset)});
        }
        ++sentence;
        offset = 0;
    }
}

// Whether two sentences are of one document.
bool same_document(const SampleSource& source, int64_t sentence, int64_t other) {
    int64_t low = 0, high = source.documents;  // the document of `sentence` is in [low, high)
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        (source.document_index[middle] <= sentence ? low : high) = middle;
    }
    return source.document_index[low] <= other && other < source.document_index[low + 1];
}

// The first piece of the second segment.
const Piece* pivot_of(const std::vector<Piece>& pieces, Random& random) {
    return pieces.data() + 1 + random.below(static_cast<uint32_t>(pieces.size() - 1));
}

// Copies n tokens to `row` and appends the columns where words start, the first token's among them where a segment
// starts; `column` is that of row[0]. Returns the new word count. Throws std::runtime_error for ids outside the
// vocabulary.
template <typename T>
int64_t copy_tokens(const T* tokens, const uint8_t* words, int64_t token, int64_t n, const std::vector<int32_t>& table,
                    int64_t* row, int64_t column, bool segment_starts, uint32_t* word_starts, int64_t word) {
    using Unsigned = std::make_unsigned_t<T>;  // a negative id becomes a huge one
    const auto* ids = reinterpret_cast<const Unsigned*>(tokens + token);
    Unsigned largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, ids[i]);
    if (largest >= table.size()) throw std::runtime_error("a token id is not in the vocabulary");
    const int32_t* entries = table.data();
    for (int64_t i = 0; i < n; ++i) row[i] = entries[ids[i]] & ~AssemblyRule::kStartsWord;
    if (segment_starts && n > 0) word_starts[word++] = static_cast<uint32_t>(column);
    const int64_t skip = segment_starts ? 1 : 0;
    if (words == nullptr) {
        for (int64_t i = skip; i < n; ++i) {
            word_starts[word] = static_cast<uint32_t>(column + i);
            word += entries[ids[i]] < 0;
        }
        return word;
    }
    for (int64_t i = skip; i < n;) {
        // The bits up to the end of their byte; then bytes.
        const int64_t bit = token + i, count = std::min<int64_t>(8 - (bit & 7), n - i);
        uint32_t bits = (words[bit >> 3] >> (bit & 7)) & ((1u << count) - 1);
        for (; bits; bits &= bits - 1) {
            word_starts[word++] = static_cast<uint32_t>(column + i + __builtin_ctz(bits));
        }
        i += count;
    }
    return word;
}

int64_t copy_piece(const SampleSource& s, int64_t token, int64_t n, const std::vector<int32_t>& table, int64_t* row,
                   int64_t column, bool segment_starts, uint32_t* word_starts, int64_t word) {
    const auto copy = [&](auto type) {
        using T = decltype(type);
        return copy_tokens(static_cast<const T*>(s.tokens), s.words, token, n, table, row, column, segment_starts,
                           word_starts, word);
    };
    switch (s.type) {
        case TokenType::uint8: return copy(uint8_t{});
        case TokenType::int8: return copy(int8_t{});
        case TokenType::int16: return copy(int16_t{});
        case TokenType::int32: return copy(int32_t{});
        case TokenType::int64: return copy(int64_t{});
        case TokenType::uint16: return copy(uint16_t{});
    }
    return word;
}

// The two segments of a sample (the second empty where there is one), and the label of the objective.
Runs choose_runs(const SampleSource& source, const SampleParts& sample, const AssemblyRule& rule, Random& random,
                 Scratch& scratch) {
    const int token_shift = shift_of(source.type);
    gather_pieces(source, source.rows[sample.own.row], rule.pieces, token_shift, scratch.pieces);
    const Piece* begin = scratch.pieces.data();
    const Piece* end = begin + scratch.pieces.size();
    if (rule.objective == Objective::none) return {{{begin, end}, {end, end}}, false};
    const Piece* pivot = pivot_of(scratch.pieces, random);
    if (rule.objective == Objective::sentence_order) {
        if (random.coin()) return {{{pivot, end}, {begin, pivot}}, true};
        return {{{begin, pivot}, {pivot, end}}, false};
    }
    if (!sample.exchanged) return {{{begin, pivot}, {pivot, end}}, false};
    gather_pieces(source, source.rows[sample.other.row], rule.pieces, token_shift, scratch.others);
    Random others(sample.other.random);
    return {{{begin, pivot}, {pivot_of(scratch.others, others), scratch.others.data() + scratch.others.size()}}, true};
}

// Writes [CLS] A [SEP] or [CLS] A [SEP] B [SEP], cut to `target` tokens at either end of the longer segment, and
// padding: tokens and token types [seq_length]. Returns the length without padding; `segments` are their words.
int64_t write_segments(const SampleSource& source, const Runs& runs, int64_t target, const AssemblyRule& rule,
                       Random& random, Scratch& scratch, int64_t* tokens, int64_t* types, Segment (&segments)[2]) {
    const int64_t sizes[2] = {runs.side[0].tokens(), runs.side[1].tokens()};
    const auto [drop_first, drop_second] = excess(sizes[0], sizes[1], target);
    const int64_t drops[2] = {drop_first, drop_second};
    int64_t column = 0, word = 0;
    tokens[column++] = rule.cls;
    for (int side = 0; side < (rule.objective == Objective::none ? 1 : 2); ++side) {
        int64_t skip = heads(drops[side], random), keep = sizes[side] - drops[side];
        if (column + keep + 1 > rule.seq_length) fail_damaged();
        const int64_t start = column;
        segments[side].first = word;
        for (const Piece* piece = runs.side[side].begin; piece != runs.side[side].end; ++piece) {
            const int64_t from = std::min(skip, piece->length), n = std::min(keep, piece->length - from);
            word = copy_piece(source, piece->token + from, n, rule.vocabulary, tokens + column, column,
                              column == start, scratch.word_starts.data(), word);
            column += n;
            skip -= from;
            keep -= n;
        }
        segments[side].last = word;
        scratch.word_starts[word++] = static_cast<uint32_t>(column);  // the end of the last word
        tokens[column++] = rule.sep;
        std::fill(types + (side == 0 ? 0 : start), types + column, int64_t{side});
    }
    std::fill(tokens + column, tokens + rule.seq_length, rule.pad);
    std::fill(types + column, types + rule.seq_length, int64_t{0});
    return column;
}

// Marks the words to predict: `budget` tokens in whole words. Words are tried in random order; at each an n-gram is
// drawn and shrunk until it fits into the budget, the segment and the words still free. Where every word is longer than
// the budget, the shortest is taken: a sample always has something to predict.
void choose_words(Scratch& scratch, Segment a, Segment b, int64_t budget, const std::vector<uint32_t>& ngrams,
                  Random& random) {
    const int64_t a_words = a.last - a.first, words = a_words + b.last - b.first;
    const uint32_t* starts = scratch.word_starts.data();
    uint32_t* order = scratch.order.data();
    uint8_t* masked = scratch.masked.data();  // by place in word_starts
    for (int64_t i = 0; i < a_words; ++i) order[i] = static_cast<uint32_t>(a.first + i);
    for (int64_t i = a_words; i < words; ++i) order[i] = static_cast<uint32_t>(b.first + i - a_words);
    std::fill(masked + a.first, masked + a.last, uint8_t{0});
    std::fill(masked + b.first, masked + b.last, uint8_t{0});

    int64_t left = budget;
    for (int64_t i = 0; i < words && left > 0; ++i) {
        const uint64_t draw = random.next();  // the high half chooses the word, the low half the n-gram
        const int64_t j = i + static_cast<int64_t>(((draw >> 32) * static_cast<uint64_t>(words - i)) >> 32);
        std::swap(order[i], order[j]);
        int64_t n = 1;
        for (const uint32_t threshold : ngrams) n += static_cast<uint32_t>(draw) >= threshold;
        const int64_t word = order[i], end = std::min(word + n, word < a.last ? a.last : b.last);
        int64_t w = word, taken = 0;
        for (; w < end && !masked[w]; ++w) {
            const int64_t length = starts[w + 1] - starts[w];
            if (taken + length > left) break;
            taken += length;
            masked[w] = 1;
        }
        left -= taken;
    }
    if (left < budget) return;
    const auto length = [&](uint32_t word) { return starts[word + 1] - starts[word]; };
    const uint32_t shortest =
        *std::min_element(order, order + words, [&](uint32_t x, uint32_t y) { return length(x) < length(y); });
    masked[shortest] = 1;
}

}  // namespace

Assembler::Assembler(std::vector<SampleSource> sources, std::vector<double> weights, AssemblyRule rule)
    : sources_(std::move(sources)), rule_(std::move(rule)), blend_(std::move(weights)) {
    double total = 0, sum = 0;
    for (int n = 1; n <= rule_.max_ngrams; ++n) total += 1.0 / n;
    for (int n = 1; n < rule_.max_ngrams; ++n) {
        sum += 1.0 / n;
        ngram_thresholds_.push_back(static_cast<uint32_t>(sum / total * 4294967296.0));
    }
}

SampleParts Assembler::parts(int32_t corpus, int64_t number) const {
    const SampleSource& source = sources_[static_cast<size_t>(corpus)];
    const uint64_t epoch_key = combine(source.key, static_cast<uint64_t>(number / source.num_rows));
    const int64_t place = number % source.num_rows;
    const Permutation shuffle(static_cast<uint64_t>(source.num_rows), epoch_key);
    const auto name = [&](int64_t at) -> SampleName {
        const auto counter = static_cast<uint64_t>(at);
        return {static_cast<int64_t>(shuffle(counter)), combine(epoch_key, counter)};
    };
    SampleParts parts{corpus, name(place), {}, false};
    // Two samples of an epoch, half of it apart, exchange their second segments or both keep them: so each is used
    // once. An odd one out keeps its own.
    const int64_t half = source.num_rows / 2;
    if (rule_.objective == Objective::next_sentence && place < 2 * half) {
        const int64_t pair = place % half;
        if (Random(combine(~epoch_key, static_cast<uint64_t>(pair))).coin()) {
            parts.other = name(place < half ? place + half : place - half);
            parts.exchanged = !same_document(source, source.rows[parts.own.row].sentence(),
                                             source.rows[parts.other.row].sentence());
        }
    }
    return parts;
}

SampleParts Assembler::parts(int64_t sample) {
    int32_t corpus;
    int64_t number;
    blend_.assign(sample, 1, &corpus, &number);
    return parts(corpus, number);
}

void Assembler::assemble(int64_t first, int64_t count, BatchArrays& batch) {
    const int64_t width = rule_.seq_length;
    std::vector<int32_t> corpora(static_cast<size_t>(count));
    std::vector<int64_t> numbers(static_cast<size_t>(count));
    blend_.assign(first, count, corpora.data(), numbers.data());
    Scratch scratch(width);
    const double share = std::max(rule_.mask_share(first), rule_.mask_share(first + count));
    const size_t expected = static_cast<size_t>(static_cast<double>(count * width) * share) + count;
    batch.masked_positions.reserve(expected);
    batch.masked_labels.reserve(expected);

    for (int64_t i = 0; i < count; ++i) {
        const SampleParts sample = parts(corpora[i], numbers[i]);
        const SampleSource& source = sources_[static_cast<size_t>(sample.corpus)];
        const SampleRow& row = source.rows[sample.own.row];
        Random random(sample.own.random);
        const Runs runs = choose_runs(source, sample, rule_, random, scratch);
        const int64_t target =
            rule_.pieces.full_sentences ? rule_.pieces.longest : source.targets(row.sentence(), row.offset);
        int64_t* tokens = batch.tokens + i * width;
        Segment segments[2] = {};
        const int64_t length = write_segments(source, runs, target, rule_, random, scratch, tokens,
                                              batch.token_types + i * width, segments);
        batch.lengths[i] = length;
        batch.order_labels[i] = runs.label;

        const double wanted = rule_.mask_share(first + i) * static_cast<double>(length);
        const int64_t budget = std::max<int64_t>(1, std::llrint(wanted));
        choose_words(scratch, segments[0], segments[1], budget, ngram_thresholds_, random);
        for (const Segment& segment : segments) {
            for (int64_t w = segment.first; w < segment.last; ++w) {
                if (!scratch.masked[w]) continue;
                for (uint32_t c = scratch.word_starts[w]; c < scratch.word_starts[w + 1]; ++c) {
                    batch.masked_positions.push_back(i * width + c);
                    batch.masked_labels.push_back(tokens[c]);
                    tokens[c] = replacement(tokens[c], random.next());
                }
            }
        }
    }
}

// 80 % [MASK], 10 % the token itself, 10 % a random one.
int64_t Assembler::replacement(int64_t token, uint64_t draw) const {
    constexpr uint32_t kMask = 3435973837, kKeep = 3865470566;  // 0.8 and 0.9 in units of 2^-32
    const auto share = static_cast<uint32_t>(draw >> 32);
    if (share >= kKeep) return rule_.random_ids[((draw & 0xffffffffu) * rule_.random_ids.size()) >> 32];
    return share < kMask ? rule_.mask : token;
}

}  // namespace megatron

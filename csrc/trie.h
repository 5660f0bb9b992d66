// Tries over symbols (code points, or codes of them): one that grows, and a double array to look words up in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace megatron {

// A trie to which words are added. Nodes are numbered from 0, the root; a parent comes before its children.
class TrieBuilder {
  public:
    using Node = int32_t;
    static constexpr Node kNone = -1;
    static constexpr Node kRoot = 0;

    TrieBuilder() : edges_(1 << 10), parents_{kNone}, symbols_{0} {}

    Node child(Node node, uint32_t symbol) const {
        for (size_t i = slot(node, symbol);; i = (i + 1) & (edges_.size() - 1)) {
            if (edges_[i] == 0) return kNone;
            if (parents_[edges_[i]] == node && symbols_[edges_[i]] == symbol) return edges_[i];
        }
    }

    // The node of a word, made where it is missing.
    template <typename Symbols>
    Node add(const Symbols& word) {
        Node node = kRoot;
        for (const uint32_t symbol : word) {
            const Node next = child(node, symbol);
            node = next == kNone ? add_child(node, symbol) : next;
        }
        return node;
    }

    // A new child; there must be none by this symbol.
    Node add_child(Node node, uint32_t symbol) {
        const auto made = static_cast<Node>(parents_.size());
        parents_.push_back(node);
        symbols_.push_back(symbol);
        insert(made);
        if (parents_.size() * 2 > edges_.size()) grow();
        return made;
    }

    size_t size() const { return parents_.size(); }
    Node parent(Node node) const { return parents_[node]; }
    uint32_t symbol(Node node) const { return symbols_[node]; }  // on the edge from the parent

  private:
    size_t slot(Node node, uint32_t symbol) const {
        const uint64_t key = (static_cast<uint64_t>(node) << 32 | symbol) * 0x9E3779B97F4A7C15ull;
        return (key ^ key >> 32) & (edges_.size() - 1);
    }

    void insert(Node node) {
        size_t i = slot(parents_[node], symbols_[node]);
        while (edges_[i] != 0) i = (i + 1) & (edges_.size() - 1);
        edges_[i] = node;
    }

    void grow() {
        edges_.assign(edges_.size() * 2, 0);
        for (size_t node = 1; node < parents_.size(); ++node) insert(static_cast<Node>(node));
    }

    std::vector<Node> edges_;  // open addressing by (parent, symbol); 0 is free, as the root is no child
    std::vector<Node> parents_;
    std::vector<uint32_t> symbols_;
};

// A trie in one array (Aoe, 1989): the child of a node by a code stands at base + code if the label there is the code.
// That is enough because no two nodes have the same base. Labels are 2 bytes, so that what is asked for in vain (most
// is) stays in the cache. Codes are 1 .. codes - 1, the frequent ones small: what is often asked for lies together.
template <typename Value>
class DoubleArray {
  public:
    using Node = int32_t;  // its place
    static constexpr Node kRoot = 0;

    DoubleArray() = default;

    // `code_of(symbol)` in [1, codes); `value_of(node)` of the builder's node; `nothing`: the value of none().
    template <typename CodeOf, typename ValueOf>
    DoubleArray(const TrieBuilder& trie, uint32_t codes, CodeOf code_of, ValueOf value_of, const Value& nothing) {
        const auto nodes = static_cast<int32_t>(trie.size());
        std::vector<int32_t> first(nodes + 1, 0), children(nodes - 1), order(nodes);
        for (int32_t node = 1; node < nodes; ++node) ++first[trie.parent(node) + 1];
        std::partial_sum(first.begin(), first.end(), first.begin());
        std::vector<int32_t> filled(first.begin(), first.end() - 1);
        for (int32_t node = 1; node < nodes; ++node) children[filled[trie.parent(node)]++] = node;
        // The largest families choose first; single children then fill the gaps.
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return first[a + 1] - first[a] > first[b + 1] - first[b]; });

        std::vector<int32_t> place(nodes, 0), base(nodes, kNoChild), family;
        Gaps gaps(static_cast<int32_t>(codes));
        for (const int32_t node : order) {
            family.clear();
            for (int32_t i = first[node]; i < first[node + 1]; ++i) {
                family.push_back(static_cast<int32_t>(code_of(trie.symbol(children[i]))));
            }
            if (family.empty()) break;
            base[node] = gaps.take(family);
            for (int32_t i = first[node]; i < first[node + 1]; ++i) {
                place[children[i]] = base[node] + static_cast<int32_t>(code_of(trie.symbol(children[i])));
            }
        }
        // Any base + code must be inside, whatever the code; where nodes without children look there are no labels.
        const int32_t used = none_ = gaps.used();
        labels_.assign(used + codes, 0);
        entries_.assign(used + 1, Entry{used, nothing});
        for (int32_t node = 0; node < nodes; ++node) {
            entries_[place[node]] = {base[node] == kNoChild ? used : base[node], value_of(node)};
            if (node) labels_[place[node]] = static_cast<uint16_t>(code_of(trie.symbol(node)));
        }
    }

    // The child of a node by a code below `codes`; none() if there is none, and of none().
    Node child(Node node, uint32_t code) const {
        const Node next = entries_[node].base + static_cast<Node>(code);
        // Without a branch: half the time there is one, half the time not.
        return none_ ^ ((next ^ none_) & -static_cast<Node>(labels_[next] == code));
    }

    Node none() const { return none_; }
    const Value& value(Node node) const { return entries_[node].value; }

  private:
    // The free cells, as a list in ascending order that starts at cell 0, the root. Its last cell is never taken.
    class Gaps {
      public:
        explicit Gaps(int32_t codes) : codes_(codes) { extend(4 * codes + 16); }

        // A base at which all codes of a family are free; they are taken.
        int32_t take(std::vector<int32_t>& family) {
            const int32_t lowest = *std::min_element(family.begin(), family.end());
            if (family.size() * 2 <= last_size_ || last_size_ == 0) {
                last_size_ = family.size();
                from_ = 0;
            }
            int32_t cell = next_[from_];
            for (int tries = 1; !fits(family, cell - lowest); ++tries) {
                // A crowded part of the list is left to smaller families.
                if (tries >= kTries) from_ = cell;
                cell = next_[cell];
            }
            const int32_t base = cell - lowest;
            bases_[base] = true;
            for (const int32_t code : family) {
                remove(base + code);
                beyond_ = std::max(beyond_, base + code);
            }
            if (beyond_ + 2 * codes_ >= size()) extend(size());
            return base;
        }

        int32_t used() const { return beyond_ + 1; }

      private:
        static constexpr int kTries = 16;

        int32_t size() const { return static_cast<int32_t>(next_.size()); }

        bool fits(const std::vector<int32_t>& family, int32_t base) const {
            if (base < 0 || bases_[base]) return false;
            return std::all_of(family.begin(), family.end(), [&](int32_t code) { return free_[base + code]; });
        }

        void remove(int32_t cell) {
            if (cell == from_) from_ = previous_[cell];
            next_[previous_[cell]] = next_[cell];
            previous_[next_[cell]] = previous_[cell];
            free_[cell] = false;
        }

        void extend(int32_t by) {
            const int32_t begin = size(), end = begin + by;
            next_.resize(end);
            previous_.resize(end);
            free_.resize(end, true);
            bases_.resize(end, false);
            for (int32_t cell = begin; cell < end; ++cell) {
                next_[cell] = cell + 1;
                previous_[cell] = cell - 1;
            }
            free_[0] = false;
        }

        int32_t codes_, from_ = 0;
        int32_t beyond_ = 0;  // the last cell taken
        size_t last_size_ = 0;
        std::vector<int32_t> next_, previous_;
        std::vector<bool> free_, bases_;  // whether a cell is free; whether it is a family's base
    };

    static constexpr int32_t kNoChild = -1;

    struct Entry {
        int32_t base;
        Value value;
    };

    Node none_ = 0;
    std::vector<uint16_t> labels_;
    std::vector<Entry> entries_;
};

}  // namespace megatron

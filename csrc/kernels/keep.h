// Which elements dropout keeps: a hash of (key of the row, site, column), so that no mask is stored.
#pragma once

#include "../hash.h"
#include "portable.h"

namespace megatron {

// A dropout site. threshold: the hashes below it are dropped; scale: 1 / (1 - probability).
struct DropoutSite {
    const uint64_t* keys;  // one a row
    uint64_t site_key;
    uint32_t threshold;
    float scale;
};

inline DropoutSite dropout_site(const uint64_t* keys, uint64_t site_key, double probability) {
    const double threshold = probability * 4294967296.0;
    return {keys, site_key, static_cast<uint32_t>(threshold < 4294967295.0 ? threshold : 4294967295.0),
            static_cast<float>(1.0 / (1.0 - probability))};
}

struct RowKey {
    uint32_t low, high;

    MEGATRON_HD explicit RowKey(uint64_t key) : low(static_cast<uint32_t>(key)), high(static_cast<uint32_t>(key >> 32)) {}

    MEGATRON_HD uint32_t hash(uint32_t column) const { return mix32(mix32(column ^ low) + high); }
};

MEGATRON_HD RowKey row_key(const DropoutSite& site, int64_t row) { return RowKey(mix64(site.keys[row] ^ site.site_key)); }

// What dropout makes of element x of a row's column.
MEGATRON_HD float kept(const DropoutSite& site, const RowKey& key, int64_t column, float x) {
    return key.hash(static_cast<uint32_t>(column)) >= site.threshold ? x * site.scale : 0.0f;
}

}  // namespace megatron

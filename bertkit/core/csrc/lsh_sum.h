// Sums of the values of the keys that collide with each query, by tables.
#pragma once

#include "lsh_hash.h"

namespace bertkit {
namespace lsh {
namespace {

constexpr int64_t kMostVectors = 8;

/// The vectors, a power of two, that the next columns of so many fill.
constexpr int64_t next_vectors(int64_t columns) {
    int64_t vectors = kMostVectors;
    while (vectors > 1 && vectors * kLanes >= columns + kLanes) vectors /= 2;
    return vectors;
}

struct Sum {
    static constexpr int64_t kTableBytes = 1 << 20;  // of the tables of some hashes together: what stays in a cache
    static constexpr int64_t kMostHashes = 8;
    static constexpr int64_t kAhead = 8;  // rows from one that comes to a cache to the one that is worked on

    const bk_lsh& of;
    const bk_lsh_side &queries, &keys;
    int64_t width;
    bk_lsh_vectors values;
    float* sums;

    int64_t hashes_at_once(int64_t vectors) const {
        const int64_t fit = kTableBytes / (capacity_of(of) * vectors * int64_t(sizeof(Floats)));
        return minimum(minimum(maximum(fit, 1), kMostHashes), of.hashes);
    }
    int64_t copy_bytes() const {
        return is_dense(values, width) ? 0 : round_up(keys.rows * width * int64_t(sizeof(float)), 64);
    }
    int64_t bytes() const {
        int64_t most = 0;  // not always that of the widest columns: narrower ones have tables of more hashes at once
        for (int64_t vectors = next_vectors(width); vectors > 0; vectors /= 2) {
            const int64_t bucket = vectors * int64_t(sizeof(Floats)) + int64_t(sizeof(int32_t));
            most = maximum(most, hashes_at_once(vectors) * capacity_of(of) * bucket);
        }
        return copy_bytes() + most;
    }

    void add(int64_t group, const Codes& query_codes, const Codes& key_codes, char* memory) const {
        Matrix from = of_group(values, of, group, keys.rows, width);
        if (!is_dense(values, width)) {
            const Matrix copied = {reinterpret_cast<float*>(memory), width};
            copy(from, keys.rows, width, copied);
            from = copied;
        }
        const Matrix to = {sums + group * queries.rows * width, width};
        auto* table = reinterpret_cast<float*>(memory + copy_bytes());
        for (int64_t begin = 0; begin < width; begin += next_vectors(width - begin) * kLanes) {
            switch (next_vectors(width - begin)) {
                case 8: add_columns<8>(from, to, begin, query_codes, key_codes, table); break;
                case 4: add_columns<4>(from, to, begin, query_codes, key_codes, table); break;
                case 2: add_columns<2>(from, to, begin, query_codes, key_codes, table); break;
                default: add_columns<1>(from, to, begin, query_codes, key_codes, table);
            }
        }
    }

    template <int kVectors>
    void add_columns(const Matrix& from, const Matrix& to, int64_t begin, const Codes& query_codes, const Codes& key_codes,
                     float* table) const {
        constexpr int64_t kPitch = kVectors * kLanes;
        const int64_t hashes = of.hashes, step = hashes_at_once(kVectors), columns = width - begin, buckets = capacity_of(of);
        // A bucket counts once a key was added to it; before, it holds anything. Clearing takes long where keys are few.
        auto* counts = reinterpret_cast<int32_t*>(table + step * buckets * kPitch);
        for (int64_t first = 0; first < hashes; first += step) {
            const int64_t count = minimum(step, hashes - first);
            const Codes of_queries = query_codes.from(first), of_keys = key_codes.from(first);
            std::memset(counts, 0, std::size_t(count * buckets) * sizeof *counts);
            for (int64_t key = 0; key < keys.rows; ++key) {
                if (of_keys[0][key] == buckets) continue;
                fetch(from[key + kAhead] + begin, kPitch * int64_t(sizeof *table));
                const auto value = Row<kVectors>::read(from[key] + begin, columns);
                for (int64_t m = 0; m < count; ++m) {
                    const int64_t bucket = m * buckets + of_keys[m][key];
                    Row<kVectors> sum = value;
                    sum.add(table + bucket * kPitch, counts[bucket]);
                    sum.write(table + bucket * kPitch, kPitch);
                    counts[bucket] = 1;
                }
            }
            for (int64_t query = 0; query < queries.rows; ++query) {
                float* row = to[query] + begin;
                Row<kVectors> total = {};
                fetch(to[query + kAhead] + begin, kPitch * int64_t(sizeof *table));
                if (of_queries[0][query] != buckets) {
                    if (first > 0) total = Row<kVectors>::read(row, columns);
                    for (int64_t m = 0; m < count; ++m) {
                        const int64_t bucket = m * buckets + of_queries[m][query];
                        total.add(table + bucket * kPitch, counts[bucket]);
                    }
                    if (first + count == hashes) {
                        for (Floats& x : total.x) x /= float(hashes);
                    }
                }
                total.write(row, columns);
            }
        }
    }
};

}  // namespace
}  // namespace lsh
}  // namespace bertkit

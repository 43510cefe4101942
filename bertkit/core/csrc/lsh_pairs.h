// Sums over pairs of a query and a key that collide, each with a weight of its own.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "lsh_hash.h"

namespace bertkit {
namespace lsh {
namespace {

// -- products over rows that are scattered in memory --------------------------------------------------------------------
constexpr int kTogether = 4;  // rows that are worked on together

/// Rows of two arrays that are needed next. Some come at each step of other work, which would have to wait for all at once:
/// to the second cache, as the first is full of what is worked on.
struct Ahead {
    struct Part {
        Rows rows;
        int64_t count, at_once;
    };
    int64_t steps = 0;
    Part parts[2] = {};

    Ahead() = default;
    Ahead(int64_t steps, const Rows& x, int64_t x_count, const Rows& y, int64_t y_count)
        : steps(steps), parts{{x, x_count, parts_of(x_count, steps)}, {y, y_count, parts_of(y_count, steps)}} {}

    void step() {
        if (steps == 0) return;
        --steps;
        for (Part& part : parts) {
            const int64_t count = minimum(part.at_once, part.count);
            for (int64_t i = 0; i < count; ++i) fetch<2>(part.rows[i], part.rows.pitch * int64_t(sizeof(float)));
            part.rows = part.rows.from(count);
            part.count -= count;
        }
    }
};

/// Some columns of kRows rows of what follows. Sums begin at zero so that they need not wait for what they are added to. Always
/// inline: a call takes as long as what there is to do for a small bucket.
template <int kRows, int kVectors, bool kTransposed>
[[gnu::always_inline]] inline void add_products_to(const Rows& to, const float* factors, int64_t pitch, const Rows& from,
                                                   int64_t count, int64_t begin) {
    Floats sums[kRows][kVectors] = {};
    for (int64_t i = 0; i < count; ++i) {
        const float* row = from[i] + begin;
        const float* here = factors + (kTransposed ? i * pitch : i);
        Floats x[kVectors];
        for (int v = 0; v < kVectors; ++v) x[v] = load(row + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const float factor = here[kTransposed ? r : r * pitch];
            for (int v = 0; v < kVectors; ++v) sums[r][v] += factor * x[v];
        }
    }
    for (int r = 0; r < kRows; ++r) {
        float* row = to[r] + begin;
        for (int v = 0; v < kVectors; ++v) store(row + v * kLanes, load(row + v * kLanes) + sums[r][v]);
    }
}

/// to[row] += the sum of factors[row][i] * from[i], or of factors[i][row] * from[i], from `row` on.
template <bool kTransposed, int kRows = kTogether>
[[gnu::always_inline]] inline void add_products(const Rows& to, int64_t rows, const Matrix& factors, const Rows& from,
                                                int64_t count, Ahead& ahead, int64_t row = 0) {
    constexpr int kVectors = kLanes == 16 ? 4 : 2;
    for (; row + kRows <= rows; row += kRows) {
        ahead.step();
        const float* here = kTransposed ? factors.data + row : factors[row];
        int64_t begin = 0;
        for (; begin + kVectors * kLanes <= to.pitch; begin += kVectors * kLanes) {
            add_products_to<kRows, kVectors, kTransposed>(to.from(row), here, factors.pitch, from, count, begin);
        }
        for (; begin < to.pitch; begin += kLanes) {
            add_products_to<kRows, 1, kTransposed>(to.from(row), here, factors.pitch, from, count, begin);
        }
    }
    if constexpr (kRows > 1) add_products<kTransposed, kRows - 1>(to, rows, factors, from, count, ahead, row);
}

// -- pairs of a query and a key ------------------------------------------------------------------------------------------
constexpr int64_t kFours = kLanes / 4;  // of numbers, in a vector

/// Four numbers, over and over: an instruction that GCC does not find.
inline Floats repeated_four(const float* x) {
#if defined(__AVX512F__)
    const __m512 y = _mm512_maskz_broadcast_f32x4(-1, _mm_loadu_ps(x));
    return load(reinterpret_cast<const float*>(&y));
#elif defined(__AVX2__)
    const __m256 y = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x));
    return load(reinterpret_cast<const float*>(&y));
#else
    return load(x);
#endif
}

/// The four j of x[i] become the four i of x[j].
template <int kRun = kLanes / 2>
inline void transpose_fours(Floats* x) {
    if constexpr (kRun >= 4) {
        for (int i = 0; i < kFours; ++i) {
            if (i & (kRun / 4)) continue;
            const Floats first = shuffle(x[i], x[i + kRun / 4], runs<kRun, 0>(AllLanes()));
            x[i + kRun / 4] = shuffle(x[i], x[i + kRun / 4], runs<kRun, 1>(AllLanes()));
            x[i] = first;
        }
        transpose_fours<kRun / 2>(x);
    }
}

/// The rows of one side in the order of their codes.
struct Buckets {
    int32_t* sizes;  // [capacity + 1]
    int32_t* ends;   // [capacity + 1]

    /// Rows whose code is the capacity are dropped.
    void sort(const int32_t* codes, int64_t count, int64_t capacity, int32_t* rows) {
        std::memset(sizes, 0, std::size_t(capacity + 1) * sizeof *sizes);
        for (int64_t row = 0; row < count; ++row) ++sizes[codes[row]];
        int32_t end = 0;
        for (int64_t code = 0; code <= capacity; ++code) {
            ends[code] = end;
            end += sizes[code];
        }
        for (int64_t row = 0; row < count; ++row) rows[ends[codes[row]]++] = int32_t(row);
    }

    int32_t begin(int64_t code) const { return ends[code] - sizes[code]; }
};

/// Some queries and keys that share a code, and the weights of their pairs.
struct Block {
    const int32_t *queries, *keys;
    int64_t query_count, key_count;
    Matrix weights;  // [queries, keys]
};

/// Everything that is summed over pairs of a query and a key that collide, weighted by the dot product of their scores.
///
/// The rows of a bucket are anywhere in memory. So first come the weights of many buckets, then the sums of their queries, then
/// those of their keys: each of the three walks to and fro in two arrays, which a cache holds unless they are long. If they
/// are, the rows of the next bucket come while one is worked on. Buckets of one size follow each other, since how long a loop
/// is cannot be foreseen otherwise, neither by a processor.
struct PairSums {
    static constexpr int64_t kMostHashes = 8, kMostRows = 1 << 17;           // that are sorted at once
    static constexpr int64_t kMostBlocks = 1 << 12, kMostWeights = 1 << 17;  // that are kept before they are used
    static constexpr int64_t kLongest = 128;                                 // of a block, in rows
    static constexpr int64_t kAtTable = 64;                                  // rows that the nearest cache holds beside a table
    static constexpr int64_t kSizes = 16;                                    // of buckets, that are told apart
    static constexpr int64_t kNearBytes = 1 << 21;                           // of rows, that a cache holds

    const bk_lsh& of;
    const bk_lsh_side &queries, &keys;
    int64_t score_width, width;
    float scale;
    bk_lsh_vectors query_scores, key_scores;  // [rows, score_width]
    bk_lsh_vectors query_rows, key_rows;      // [rows, width]; the first is not used where only the queries get something
    float *query_sums, *key_sums;             // [rows, width]: of the rows of the other side, weighted

    bool both() const { return key_sums != nullptr; }
    int64_t hashes_at_once() const {
        const int64_t fit = kMostRows / (maximum(queries.rows, keys.rows) + 1);
        return minimum(minimum(maximum(fit, 1), kMostHashes), of.hashes);
    }

    /// One side of a group. Rows are whole vectors, one behind the other: copies, where the caller's are not.
    struct Side {
        Matrix scores, rows, sums;
        int32_t* order;  // [hashes at once, rows]
        Buckets buckets;
    };

    struct Memory {
        Side queries, keys;
        int32_t *codes, *numbers;  // by the size of their buckets; 0, 1, 2 ...
        float *weights, *packed;
        Matrix table;
        Block* blocks;
        int64_t weight_count, block_count;
    };

    static bool is_whole(int64_t columns) { return columns % kLanes == 0; }
    static bool is_at_hand(const bk_lsh_vectors& x, int64_t columns) { return is_whole(columns) && is_dense(x, columns); }

    Side place_side(Walk& walk, int64_t count, const bk_lsh_vectors& scores, const bk_lsh_vectors& rows, bool has_rows,
                    bool has_sums) const {
        const auto copies = [&](int64_t columns, bool needed) {
            const int64_t pitch = round_up(columns, kLanes);
            return Matrix{needed ? walk.take<float>(count * pitch) : nullptr, pitch};
        };
        Side side = {copies(score_width, !is_at_hand(scores, score_width)), copies(width, has_rows && !is_at_hand(rows, width)),
                     copies(width, has_sums && !is_whole(width)), nullptr, {}};
        side.order = walk.take<int32_t>(hashes_at_once() * count);
        side.buckets = {walk.take<int32_t>(capacity_of(of) + 1), walk.take<int32_t>(capacity_of(of) + 1)};
        return side;
    }

    Memory place(Walk& walk) const {
        Memory memory = {};
        memory.queries = place_side(walk, queries.rows, query_scores, query_rows, both(), true);
        memory.keys = place_side(walk, keys.rows, key_scores, key_rows, true, both());
        const int64_t a = memory.queries.scores.pitch, b = memory.keys.rows.pitch;
        memory.codes = walk.take<int32_t>(capacity_of(of));
        memory.numbers = walk.take<int32_t>(a);
        memory.weights = walk.take<float>(kMostWeights);
        memory.packed = walk.take<float>(kLongest * a);
        memory.table = {walk.take<float>(a * b), b};
        memory.blocks = walk.take<Block>(kMostBlocks + 1);
        return memory;
    }

    int64_t bytes() const {
        Walk walk(nullptr);
        place(walk);
        return walk.size();
    }

    void add(int64_t group, const Codes& query_codes, const Codes& key_codes, char* thread_memory) const {
        Walk walk(thread_memory);
        Memory memory = place(walk);
        const int64_t l = queries.rows, s = keys.rows;
        for (int64_t i = 0; i < memory.queries.scores.pitch; ++i) memory.numbers[i] = int32_t(i);
        fill(memory.queries.scores, query_scores, group, l, score_width);
        fill(memory.keys.scores, key_scores, group, s, score_width);
        fill(memory.keys.rows, key_rows, group, s, width);
        clear(memory.queries.sums, query_sums + group * l * width, l, width);
        if (both()) {
            fill(memory.queries.rows, query_rows, group, l, width);
            clear(memory.keys.sums, key_sums + group * s * width, s, width);
        }
        for (int64_t first = 0; first < of.hashes; first += hashes_at_once()) {
            const int64_t count = minimum(hashes_at_once(), of.hashes - first);
            for (int64_t m = 0; m < count; ++m) {
                add_hash(memory, query_codes[first + m], key_codes[first + m], memory.queries.order + m * l,
                         memory.keys.order + m * s);
            }
            add_blocks(memory);
        }
        finish(memory.queries.sums, l, query_sums + group * l * width);
        if (both()) finish(memory.keys.sums, s, key_sums + group * s * width);
    }

    /// Rows of the caller, where they are at hand, else copies of them.
    void fill(Matrix& rows, const bk_lsh_vectors& from, int64_t group, int64_t count, int64_t columns) const {
        const Matrix given = of_group(from, of, group, count, columns);
        if (is_at_hand(from, columns)) {
            rows = given;
            return;
        }
        std::memset(rows.data, 0, std::size_t(count * rows.pitch) * sizeof(float));
        copy(given, count, columns, rows);
    }
    static void clear(Matrix& sums, float* to, int64_t count, int64_t columns) {
        if (sums.pitch == columns) sums.data = to;
        std::memset(sums.data, 0, std::size_t(count * sums.pitch) * sizeof(float));
    }
    void finish(const Matrix& sums, int64_t count, float* to) const {
        const float factor = scale / float(of.hashes);
        for (int64_t row = 0; row < count; ++row) {
            for (int64_t d = 0; d < width; ++d) to[row * width + d] = sums[row][d] * factor;
        }
    }

    void add_hash(Memory& memory, const int32_t* query_codes, const int32_t* key_codes, int32_t* query_order,
                  int32_t* key_order) const {
        Side &query = memory.queries, &key = memory.keys;
        query.buckets.sort(query_codes, queries.rows, capacity_of(of), query_order);
        key.buckets.sort(key_codes, keys.rows, capacity_of(of), key_order);
        int32_t places[kSizes * kSizes + 1] = {};
        const auto size_of = [&](int64_t code) {
            return minimum(query.buckets.sizes[code], kSizes - 1) * kSizes + minimum(key.buckets.sizes[code], kSizes - 1);
        };
        for (int64_t code = 0; code < capacity_of(of); ++code) ++places[size_of(code) + 1];
        for (int64_t size = 0; size < kSizes * kSizes; ++size) places[size + 1] += places[size];
        for (int64_t code = 0; code < capacity_of(of); ++code) memory.codes[places[size_of(code)]++] = int32_t(code);
        for (int64_t i = 0; i < capacity_of(of); ++i) {
            const int32_t code = memory.codes[i], l = query.buckets.sizes[code], s = key.buckets.sizes[code];
            if (l == 0 || s == 0) continue;
            add_bucket(memory, query_order + query.buckets.begin(code), l, key_order + key.buckets.begin(code), s);
        }
    }

    void add_bucket(Memory& memory, const int32_t* i, int32_t l, const int32_t* j, int32_t s) const {
        const Side &query = memory.queries, &key = memory.keys;
        const int64_t a = key.scores.pitch, b = key.rows.pitch, sides = both() ? 2 : 1;
        // What each pair costs, against what a table of a x b numbers costs, to which keys add and which queries read.
        if (int64_t(l) * s * (a + sides * b) > (int64_t(l) + s) * sides * a * b) {
            add_by_table(memory, key, j, s, query, i, l);
            if (both()) add_by_table(memory, query, i, l, key, j, s);
            return;
        }
        for (int64_t q = 0; q < l; q += kLongest) {
            for (int64_t k = 0; k < s; k += kLongest) {
                keep(memory, {i + q, j + k, minimum(l - q, kLongest), minimum(s - k, kLongest), {}});
            }
        }
    }

    void keep(Memory& memory, Block block) const {
        const int64_t pitch = round_up(block.key_count, kTogether), weights = round_up(block.query_count, kFours) * pitch;
        if (memory.block_count == kMostBlocks || memory.weight_count + weights > kMostWeights) add_blocks(memory);
        block.weights = {memory.weights + memory.weight_count, pitch};
        memory.weight_count += weights;
        memory.blocks[memory.block_count++] = block;
    }

    void add_blocks(Memory& memory) const {
        const Side &query = memory.queries, &key = memory.keys;
        const Block *begin = memory.blocks, *end = begin + memory.block_count;
        memory.blocks[memory.block_count] = {};
        for (const Block* x = begin; x < end; ++x) {
            Ahead ahead = next_rows(x, x->key_count, query.scores, key.scores);
            weigh(*x, query.scores.picked(x->queries), key.scores.picked(x->keys), memory.packed, ahead);
        }
        for (const Block* x = begin; x < end; ++x) {
            Ahead ahead = next_rows(x, x->query_count, query.sums, key.rows);
            add_products<false>(query.sums.picked(x->queries), x->query_count, x->weights, key.rows.picked(x->keys),
                                x->key_count, ahead);
        }
        for (const Block* x = begin; both() && x < end; ++x) {
            Ahead ahead = next_rows(x, x->key_count, query.rows, key.sums);
            add_products<true>(key.sums.picked(x->keys), x->key_count, x->weights, query.rows.picked(x->queries),
                               x->query_count, ahead);
        }
        memory.weight_count = memory.block_count = 0;
    }

    /// Those of the block behind `block`, of which so many rows are worked on in the meantime.
    Ahead next_rows(const Block* block, int64_t rows, const Matrix& of_queries, const Matrix& of_keys) const {
        const int64_t bytes = (queries.rows + keys.rows) * (score_width + width) * int64_t(sizeof(float));
        if (bytes <= kNearBytes) return {};
        const Block& next = block[1];
        return {parts_of(rows, kTogether), of_queries.picked(next.queries), next.query_count, of_keys.picked(next.keys),
                next.key_count};
    }

    /// The dot products of queries and keys. A vector has four columns of kFours queries: only four lanes are to be added.
    static void weigh(const Block& block, const Rows& queries, const Rows& keys, float* packed, Ahead& ahead) {
        for (int64_t q = 0; q < block.query_count; q += kFours) {
            for (int64_t d = 0; d < queries.pitch; d += kLanes) {
                Floats x[kFours];
                for (int64_t i = 0; i < kFours; ++i) x[i] = load(queries[minimum(q + i, block.query_count - 1)] + d);
                transpose_fours(x);
                for (int64_t i = 0; i < kFours; ++i) store(packed + q * queries.pitch + d * kFours + i * kLanes, x[i]);
            }
        }
        weigh_keys<kTogether>(block, packed, keys, 0, ahead);
    }

    template <int kKeys>
    static void weigh_keys(const Block& block, const float* packed, const Rows& keys, int64_t k, Ahead& ahead) {
        for (; k + kKeys <= block.key_count; k += kKeys) {
            ahead.step();
            const int64_t pitch = block.weights.pitch, width = keys.pitch;
            float* weights = block.weights.data + k;
            int64_t q = 0;
            for (; q + kFours < block.query_count; q += 2 * kFours) {
                weigh_vectors<kKeys, 2>(packed + q * width, keys.from(k), weights + q * pitch, pitch);
            }
            if (q < block.query_count) weigh_vectors<kKeys, 1>(packed + q * width, keys.from(k), weights + q * pitch, pitch);
        }
        if constexpr (kKeys > 1) weigh_keys<kKeys - 1>(block, packed, keys, k, ahead);
    }

    template <int kKeys, int kVectors>
    static void weigh_vectors(const float* packed, const Rows& keys, float* weights, int64_t pitch) {
        Floats sums[kVectors][kTogether] = {};
        const float* key[kKeys];
        for (int i = 0; i < kKeys; ++i) key[i] = keys[i];
        for (int64_t d = 0; d < keys.pitch; d += 4) {
            Floats x[kVectors];
            for (int v = 0; v < kVectors; ++v) x[v] = load(packed + (v * keys.pitch + d) * kFours);
            for (int i = 0; i < kKeys; ++i) {
                const Floats y = repeated_four(key[i] + d);
                for (int v = 0; v < kVectors; ++v) sums[v][i] += x[v] * y;
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            add_lanes<2>(sums[v]);  // gives a four of keys for each query
            for (int64_t i = 0; i < kFours; ++i, weights += pitch) {
                std::memcpy(weights, reinterpret_cast<const float*>(sums[v]) + 4 * i, 4 * sizeof *weights);
            }
        }
    }

    /// The same for all of a bucket without going through its pairs: `to` gets the sums of what `from` has. Rows that it needs
    /// come while the table is filled, and then those for the other way round.
    static void add_by_table(const Memory& memory, const Side& from, const int32_t* rows, int64_t count, const Side& to,
                             const int32_t* to_rows, int64_t to_count) {
        const Rows table = memory.table.picked(memory.numbers);
        const int64_t a = from.scores.pitch;
        const Matrix packed = {memory.packed, a};
        std::memset(table.data, 0, std::size_t(a * table.pitch) * sizeof(float));
        Ahead ahead(parts_of(count, kAtTable) * parts_of(a, kTogether), to.scores.picked(to_rows), to_count,
                    to.sums.picked(to_rows), to_count);
        for (int64_t i = 0; i < count; i += kAtTable) {
            const int64_t some = minimum(count - i, kAtTable);
            pack(from.scores.picked(rows + i), some, packed);
            add_products<true>(table, a, packed, from.rows.picked(rows + i), some, ahead);
        }
        ahead = {};
        if (from.sums.data != nullptr) {
            ahead = {parts_of(to_count, kTogether), to.rows.picked(to_rows), to_count, from.sums.picked(rows), count};
        }
        for (int64_t i = 0; i < to_count; i += kAtTable) {
            const int64_t some = minimum(to_count - i, kAtTable);
            pack(to.scores.picked(to_rows + i), some, packed);
            add_products<false>(to.sums.picked(to_rows + i), some, packed, table, a, ahead);
        }
    }

    /// One after another: a processor has no more than some ten pages of memory at hand, and all of these are read many times.
    static void pack(const Rows& rows, int64_t count, const Matrix& to) {
        for (int64_t i = 0; i < count; ++i) std::memcpy(to[i], rows[i], std::size_t(to.pitch) * sizeof(float));
    }
};

}  // namespace
}  // namespace lsh
}  // namespace bertkit

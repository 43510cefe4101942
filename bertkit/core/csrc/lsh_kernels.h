// YOSO's kernels, once for all instruction sets: a level says how many floats, kLanes, it works on at a time.
//
// Vectors are those of GCC and Clang, which turn them into the instructions of the level. Sums are 32-bit floats.
#pragma once

#include <cstdint>
#include <cstring>

#include "lsh.h"
#include "memory.h"
#include "threads.h"

namespace bertkit {
namespace lsh {
namespace {

typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline Floats load(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

constexpr int64_t minimum(int64_t x, int64_t y) { return x < y ? x : y; }
constexpr int64_t parts_of(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

inline bool keeps(const uint8_t* mask, int64_t row) { return mask == nullptr || mask[row] != 0; }
inline const uint8_t* mask_of(const uint8_t* mask, int64_t sequence, int64_t rows) {
    return mask == nullptr ? nullptr : mask + sequence * rows;
}

/// Hands out numbers from 0 on, each once, to the threads that ask.
class Counter {
public:
    int64_t next() { return __atomic_fetch_add(&count_, 1, __ATOMIC_RELAXED); }

private:
    int64_t count_ = 0;
};

/// Run `job.work(item, memory)` for every item, with `bytes` of memory for each thread.
template <typename Job>
int for_each_item(const bk_lsh& of, int64_t items, int64_t bytes, const Job& job) {
    struct Context {
        const Job& job;
        int64_t items, bytes;
        char* memory;
        Counter counter;

        static void enter(const Worker& worker, void* context) {
            auto& self = *static_cast<Context*>(context);
            char* memory = self.memory + worker.thread * self.bytes;
            for (int64_t item; (item = self.counter.next()) < self.items;) self.job.work(item, memory);
        }
    };
    if (items == 0) return BK_OK;
    const int64_t threads = minimum(minimum(of.threads, items), kMostThreads);
    bytes = round_up(bytes, 4096);
    char* memory = static_cast<char*>(workspace(threads * bytes));
    if (memory == nullptr) return BK_NO_MEMORY;
    Context context{job, items, bytes, memory, {}};
    run(int(threads), of.openmp, &Context::enter, &context);
    return BK_OK;
}

// -- codes ----------------------------------------------------------------------------------------------------------
/// Butterflies of three (or two, or one) strides at a time, from `stride` on, over vectors of `size` numbers, one in each lane.
/// The order of additions is that of the reference, so that signs of sums near zero are, too. With signs, the first ones: each
/// number is multiplied by its sign before.
template <int kRadix>
void butterflies(const Floats* from, const float* signs, Floats* to, int64_t size, int64_t stride) {
    for (int64_t block = 0; block < size; block += kRadix * stride) {
        for (int64_t first = block; first < block + stride; ++first) {
            Floats y[kRadix];
            for (int i = 0; i < kRadix; ++i) {
                const int64_t place = first + i * stride;
                y[i] = signs == nullptr ? from[place] : from[place] * signs[place];
            }
            for (int step = 1; step < kRadix; step *= 2) {
                for (int i = 0; i < kRadix; ++i) {
                    if (i & step) continue;
                    const Floats sum = y[i] + y[i + step];
                    y[i + step] = y[i] - y[i + step];
                    y[i] = sum;
                }
            }
            for (int i = 0; i < kRadix; ++i) to[first + i * stride] = y[i];
        }
    }
}

inline void hadamard_transform(const Floats* from, const float* signs, Floats* to, int64_t size) {
    butterflies<8>(from, signs, to, size, 1);
    int64_t stride = 8;
    for (; size / stride >= 8; stride *= 8) butterflies<8>(to, nullptr, to, size, stride);
    if (size / stride == 4) butterflies<4>(to, nullptr, to, size, stride);
    if (size / stride == 2) butterflies<2>(to, nullptr, to, size, stride);
}

struct Hash {
    static constexpr int64_t kRows = 16 * kLanes;  // of an item

    const bk_lsh_hash& call;

    int64_t items_of_group() const { return parts_of(call.rows, kRows); }
    int64_t bytes() const { return 2 * call.size * int64_t(sizeof(Floats)); }

    void work(int64_t item, char* memory) const {
        const int64_t group = item / items_of_group(), begin = item % items_of_group() * kRows;
        const uint8_t* mask = mask_of(call.mask, group / call.of.heads, call.rows);
        auto* vectors = reinterpret_cast<Floats*>(memory);
        for (int64_t row = begin; row < minimum(begin + kRows, call.rows); row += kLanes) {
            const int64_t count = minimum(kLanes, call.rows - row);
            bool any = false;
            for (int64_t i = 0; i < count; ++i) any |= keeps(mask, row + i);
            int32_t* codes = call.codes + (group * call.rows + row) * call.of.hashes;
            if (any) {
                transpose(group * call.rows + row, count, vectors);
                hash(call.signs + group % call.of.heads * 3 * call.parts * call.size, vectors, count, codes);
            }
            for (int64_t i = 0; i < count; ++i) {
                if (!keeps(mask, row + i)) std::memset(codes + i * call.of.hashes, 0, std::size_t(call.of.hashes) * sizeof *codes);
            }
        }
    }

    void transpose(int64_t row, int64_t count, Floats* vectors) const {
        auto* to = reinterpret_cast<float*>(vectors);
        std::memset(to, 0, std::size_t(call.size) * sizeof *vectors);
        const float* from = call.vectors + row * call.width;
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t d = 0; d < call.width; ++d) to[d * kLanes + i] = from[i * call.width + d];
        }
    }

    void hash(const float* signs, const Floats* vectors, int64_t count, int32_t* codes) const {
        Floats* x = const_cast<Floats*>(vectors) + call.size;
        const int64_t bits = call.of.code_bits, hashes_of_part = call.size / bits;
        for (int64_t part = 0; part < call.parts; ++part) {
            for (int64_t step = 0; step < 3; ++step) {
                hadamard_transform(step == 0 ? vectors : x, signs + (step * call.parts + part) * call.size, x, call.size);
            }
            const int64_t first = part * hashes_of_part;
            const int64_t here = minimum(hashes_of_part, call.of.hashes - first);
            for (int64_t m = 0; m < here; ++m) {
                Ints code = {};
                for (int64_t bit = 0; bit < bits; ++bit) code |= (x[m * bits + bit] > 0) & int32_t(1u << bit);
                for (int64_t i = 0; i < count; ++i) codes[i * call.of.hashes + first + m] = code[i];
            }
        }
    }
};

inline int hash(const bk_lsh_hash& call) {
    const Hash job{call};
    return for_each_item(call.of, call.of.sequences * call.of.heads * job.items_of_group(), job.bytes(), job);
}

// -- sums -----------------------------------------------------------------------------------------------------------
/// Some columns of an array: whole vectors, of which the last may reach beyond the end of a row.
template <int kVectors>
struct Row {
    Floats x[kVectors];

    static Row read(const float* from, int64_t columns) {
        Row row;
        if (columns >= kVectors * kLanes) {
            for (int v = 0; v < kVectors; ++v) row.x[v] = load(from + v * kLanes);
        } else {
            float padded[kVectors * kLanes] = {};
            std::memcpy(padded, from, std::size_t(columns) * sizeof *padded);
            for (int v = 0; v < kVectors; ++v) row.x[v] = load(padded + v * kLanes);
        }
        return row;
    }

    void write(float* to, int64_t columns) const {
        if (columns >= kVectors * kLanes) {
            for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, x[v]);
        } else {
            float padded[kVectors * kLanes];
            for (int v = 0; v < kVectors; ++v) store(padded + v * kLanes, x[v]);
            std::memcpy(to, padded, std::size_t(columns) * sizeof *padded);
        }
    }

    void add(const float* from) {
        for (int v = 0; v < kVectors; ++v) x[v] += load(from + v * kLanes);
    }
};

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

    const bk_lsh_sum& call;

    int64_t capacity() const { return int64_t(1) << call.of.code_bits; }
    int64_t slices() const {
        int64_t count = 0;
        for (int64_t columns = call.width; columns > 0; columns -= next_vectors(columns) * kLanes) ++count;
        return count;
    }
    int64_t hashes_at_once(int64_t vectors) const {
        const int64_t fit = kTableBytes / (capacity() * vectors * int64_t(sizeof(Floats)));
        return minimum(minimum(fit < 1 ? 1 : fit, kMostHashes), call.of.hashes);
    }
    int64_t bytes() const {
        const int64_t vectors = next_vectors(call.width);
        return hashes_at_once(vectors) * capacity() * vectors * int64_t(sizeof(Floats));
    }

    void work(int64_t item, char* memory) const {
        int64_t begin = 0;
        for (int64_t slice = item % slices(); slice > 0; --slice) begin += next_vectors(call.width - begin) * kLanes;
        auto* table = reinterpret_cast<float*>(memory);
        switch (next_vectors(call.width - begin)) {
            case 8: return sum<8>(item / slices(), begin, table);
            case 4: return sum<4>(item / slices(), begin, table);
            case 2: return sum<2>(item / slices(), begin, table);
            default: return sum<1>(item / slices(), begin, table);
        }
    }

    template <int kVectors>
    void sum(int64_t group, int64_t begin, float* table) const {
        const int64_t hashes = call.of.hashes, step = hashes_at_once(kVectors), width = kVectors * kLanes;
        const int64_t columns = call.width - begin, sequence = group / call.of.heads;
        const uint8_t* key_mask = mask_of(call.keys.mask, sequence, call.keys.rows);
        const uint8_t* query_mask = mask_of(call.queries.mask, sequence, call.queries.rows);
        const int32_t* key_codes = call.keys.codes + group * call.keys.rows * hashes;
        const int32_t* query_codes = call.queries.codes + group * call.queries.rows * hashes;
        const float* values = call.values + group * call.keys.rows * call.width + begin;
        float* sums = call.sums + group * call.queries.rows * call.width + begin;
        for (int64_t first = 0; first < hashes; first += step) {
            const int64_t count = minimum(step, hashes - first);
            std::memset(table, 0, std::size_t(count * capacity() * width) * sizeof *table);
            for (int64_t key = 0; key < call.keys.rows; ++key) {
                if (!keeps(key_mask, key)) continue;
                const auto value = Row<kVectors>::read(values + key * call.width, columns);
                for (int64_t m = 0; m < count; ++m) {
                    float* bucket = table + (m * capacity() + key_codes[key * hashes + first + m]) * width;
                    for (int v = 0; v < kVectors; ++v) store(bucket + v * kLanes, load(bucket + v * kLanes) + value.x[v]);
                }
            }
            for (int64_t query = 0; query < call.queries.rows; ++query) {
                float* to = sums + query * call.width;
                Row<kVectors> total = {};
                if (keeps(query_mask, query)) {
                    if (first > 0) total = Row<kVectors>::read(to, columns);
                    for (int64_t m = 0; m < count; ++m) {
                        total.add(table + (m * capacity() + query_codes[query * hashes + first + m]) * width);
                    }
                    if (first + count == hashes) {
                        for (Floats& x : total.x) x /= float(hashes);
                    }
                }
                total.write(to, columns);
            }
        }
    }
};

inline int sum(const bk_lsh_sum& call) {
    const Sum job{call};
    return for_each_item(call.of, call.of.sequences * call.of.heads * job.slices(), job.bytes(), job);
}

// -- small products over rows that are scattered in memory ----------------------------------------------------------------
/// Rows of one width, or those that an index picks.
struct Rows {
    float* data;
    int64_t pitch;
    const int32_t* index = nullptr;

    float* operator[](int64_t row) const { return data + (index == nullptr ? row : index[row]) * pitch; }
};

template <int kRows, int kVectors, bool kTransposed>
void add_products_to(const Rows& to, int64_t row, const Rows& factors, const Rows& from, int64_t count, int64_t begin) {
    Floats sums[kRows][kVectors];
    const float* factors_of[kRows];
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) sums[r][v] = load(to[row + r] + begin + v * kLanes);
        if (!kTransposed) factors_of[r] = factors[row + r];
    }
    for (int64_t i = 0; i < count; ++i) {
        const float* x = from[i] + begin;
        const float* here = kTransposed ? factors[i] + row : nullptr;
        for (int r = 0; r < kRows; ++r) {
            const float factor = kTransposed ? here[r] : factors_of[r][i];
            for (int v = 0; v < kVectors; ++v) sums[r][v] += factor * load(x + v * kLanes);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) store(to[row + r] + begin + v * kLanes, sums[r][v]);
    }
}

template <int kVectors, bool kTransposed>
void add_products_in(const Rows& to, int64_t rows, const Rows& factors, const Rows& from, int64_t count, int64_t begin) {
    constexpr int kRows = kLanes == 16 ? 4 : 2;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
        add_products_to<kRows, kVectors, kTransposed>(to, row, factors, from, count, begin);
    }
    for (; row < rows; ++row) add_products_to<1, kVectors, kTransposed>(to, row, factors, from, count, begin);
}

/// to[row] += the sum of factors(row, i) * from[i]. The width is in whole vectors.
template <bool kTransposed>
void add_products(const Rows& to, int64_t rows, const Rows& factors, const Rows& from, int64_t count, int64_t width) {
    int64_t begin = 0;
    for (; begin + 4 * kLanes <= width; begin += 4 * kLanes) {
        add_products_in<4, kTransposed>(to, rows, factors, from, count, begin);
    }
    for (; begin < width; begin += kLanes) add_products_in<1, kTransposed>(to, rows, factors, from, count, begin);
}

inline float total(Floats x) {
    typedef float Four __attribute__((vector_size(4 * sizeof(float))));
    Four parts[kLanes / 4];
    std::memcpy(parts, &x, sizeof x);
    for (int i = 1; i < kLanes / 4; ++i) parts[0] += parts[i];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

// -- weighted sums and gradients --------------------------------------------------------------------------------------
/// The rows of one side that are kept, those with the same code together: bucket c is rows[ends[c]] ... rows[ends[c + 1] - 1].
struct Buckets {
    int32_t* ends;  // [capacity + 2]
    int32_t* rows;

    void sort(const int32_t* codes, int64_t stride, const uint8_t* mask, int64_t count, int64_t capacity) {
        std::memset(ends, 0, std::size_t(capacity + 2) * sizeof *ends);
        for (int64_t row = 0; row < count; ++row) {
            if (keeps(mask, row)) ++ends[codes[row * stride] + 2];
        }
        for (int64_t code = 0; code < capacity; ++code) ends[code + 2] += ends[code + 1];
        for (int64_t row = 0; row < count; ++row) {
            if (keeps(mask, row)) rows[ends[codes[row * stride] + 1]++] = int32_t(row);
        }
    }

    const int32_t* bucket(int64_t code) const { return rows + ends[code]; }
    int64_t size(int64_t code) const { return ends[code + 1] - ends[code]; }
};

/// Everything that is summed over pairs of a query and a key that collide, weighted by the dot product of their scores.
struct PairSums {
    static constexpr int64_t kQueriesAtOnce = 64;
    static constexpr int64_t kMostFetched = 16;
    static constexpr int64_t kManyQueries = 12;  // so many are worth the transposition of the keys

    bk_lsh of;
    bk_lsh_side queries, keys;
    int64_t score_width, width;
    float scale;
    const float *query_scores, *key_scores;  // [rows, score_width]
    const float *query_rows, *key_rows;      // [rows, width]; the first is null where only the queries get something
    float *query_sums, *key_sums;            // [rows, width]: of the rows of the other side, weighted
    float* score_sums;                       // [keys, score_width]: of the queries' scores, as they are

    int64_t capacity() const { return int64_t(1) << of.code_bits; }
    bool both() const { return key_sums != nullptr; }

    /// What a thread has: copies in whole vectors, since rows are read over and over, and what comes of them.
    struct Memory {
        int64_t score_width, width, query_pitch, key_pitch;
        Rows query_scores, key_scores, query_rows, key_rows, query_sums, key_sums, score_sums;
        Buckets queries, keys;
        float *transposed, *products, *table;
    };

    // What is read and written together lies together.
    Memory place(Walk& walk) const {
        const int64_t a = round_up(score_width, kLanes), b = round_up(width, kLanes), l = queries.rows, s = keys.rows;
        const int64_t query_pitch = a + (both() ? 2 * b : b), key_pitch = a + (both() ? 2 * b + a : b);
        float *query = walk.take<float>(l * query_pitch), *key = walk.take<float>(s * key_pitch);
        return {a, b, query_pitch, key_pitch, {query, query_pitch}, {key, key_pitch}, {query + a + b, query_pitch},
                {key + a, key_pitch}, {query + a, query_pitch}, {key + a + b, key_pitch}, {key + a + 2 * b, key_pitch},
                {walk.take<int32_t>(capacity() + 2), walk.take<int32_t>(l)},
                {walk.take<int32_t>(capacity() + 2), walk.take<int32_t>(s)}, walk.take<float>(a * kLanes),
                walk.take<float>(kQueriesAtOnce * kLanes), walk.take<float>(a * b)};
    }

    int64_t bytes() const {
        Walk walk(nullptr);
        place(walk);
        return walk.size();
    }

    void work(int64_t group, char* thread_memory) const {
        Walk walk(thread_memory);
        Memory memory = place(walk);
        const int64_t l = queries.rows, s = keys.rows, sequence = group / of.heads;
        std::memset(memory.query_scores.data, 0, std::size_t(l * memory.query_pitch) * sizeof(float));
        std::memset(memory.key_scores.data, 0, std::size_t(s * memory.key_pitch) * sizeof(float));
        copy(query_scores + group * l * score_width, l, score_width, memory.query_scores);
        copy(key_scores + group * s * score_width, s, score_width, memory.key_scores);
        copy(key_rows + group * s * width, s, width, memory.key_rows);
        if (both()) copy(query_rows + group * l * width, l, width, memory.query_rows);
        for (int64_t m = 0; m < of.hashes; ++m) {
            memory.queries.sort(queries.codes + group * l * of.hashes + m, of.hashes, mask_of(queries.mask, sequence, l), l, capacity());
            memory.keys.sort(keys.codes + group * s * of.hashes + m, of.hashes, mask_of(keys.mask, sequence, s), s, capacity());
            for (int64_t code = 0; code < capacity(); ++code) {
                if (code + 1 < capacity()) fetch(memory, code + 1);
                if (memory.queries.size(code) > 0 && memory.keys.size(code) > 0) add_bucket(memory, code);
            }
        }
        const float mean = 1.0f / float(of.hashes);
        finish(memory.query_sums, l, width, scale * mean, query_sums + group * l * width);
        if (both()) {
            finish(memory.key_sums, s, width, scale * mean, key_sums + group * s * width);
            finish(memory.score_sums, s, score_width, mean, score_sums + group * s * score_width);
        }
    }

    static void copy(const float* from, int64_t rows, int64_t width, const Rows& to) {
        for (int64_t row = 0; row < rows; ++row) {
            std::memcpy(to[row], from + row * width, std::size_t(width) * sizeof *from);
        }
    }
    static void finish(const Rows& from, int64_t rows, int64_t width, float scale, float* to) {
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t d = 0; d < width; ++d) to[row * width + d] = from[row][d] * scale;
        }
    }
    static Rows picked(const Rows& rows, const int32_t* index) { return {rows.data, rows.pitch, index}; }

    // Rows of a bucket are anywhere: the processor does not know in advance which ones come next, but we do.
    static void fetch(const Memory& memory, int64_t code) {
        const int64_t l = memory.queries.size(code), s = memory.keys.size(code);
        if (l == 0 || s == 0) return;
        for (int64_t q = 0; q < minimum(l, kMostFetched); ++q) {
            fetch(memory.query_scores[memory.queries.bucket(code)[q]], memory.query_pitch);
        }
        for (int64_t k = 0; k < minimum(s, kMostFetched); ++k) {
            fetch(memory.key_scores[memory.keys.bucket(code)[k]], memory.key_pitch);
        }
    }
    static void fetch(const float* row, int64_t width) {
        for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(row + d);
    }

    void add_bucket(const Memory& memory, int64_t code) const {
        const int32_t *i = memory.queries.bucket(code), *j = memory.keys.bucket(code);
        const int64_t l = memory.queries.size(code), s = memory.keys.size(code), a = memory.score_width, b = memory.width;
        // What each pair costs, against what a table of a x b numbers costs, to which keys add and which queries read.
        if (l * s * (a + b) <= (l + s) * a * b) {
            for (int64_t first = 0; first < s; first += kLanes) add_pairs(memory, i, l, j + first, minimum(kLanes, s - first));
        } else {
            add_by_table(memory, picked(memory.key_scores, j), picked(memory.key_rows, j), s, picked(memory.query_scores, i),
                         picked(memory.query_sums, i), l);
            if (both()) {
                add_by_table(memory, picked(memory.query_scores, i), picked(memory.query_rows, i), l,
                             picked(memory.key_scores, j), picked(memory.key_sums, j), s);
            }
        }
        if (both()) add_scores(memory, i, l, j, s);
    }

    void add_pairs(const Memory& memory, const int32_t* i, int64_t l, const int32_t* j, int64_t s) const {
        const Rows weights = {memory.products, kLanes}, keys = picked(memory.key_scores, j);
        const bool many = l >= kManyQueries;
        if (many) transpose(keys, s, memory.score_width, memory.transposed);
        for (int64_t first = 0; first < l; first += kQueriesAtOnce) {
            const int64_t count = minimum(kQueriesAtOnce, l - first);
            const Rows queries = picked(memory.query_scores, i + first);
            if (many) {
                products_with_transposed(queries, count, memory.transposed, memory.score_width, weights);
            } else {
                products(queries, count, keys, s, memory.score_width, weights);
            }
            add_products<false>(picked(memory.query_sums, i + first), count, weights, picked(memory.key_rows, j), s, memory.width);
            if (both()) {
                add_products<true>(picked(memory.key_sums, j), s, weights, picked(memory.query_rows, i + first), count,
                                   memory.width);
            }
        }
    }

    static void transpose(const Rows& rows, int64_t count, int64_t width, float* to) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const float* from = rows[minimum(lane, count - 1)];
            for (int64_t d = 0; d < width; ++d) to[d * kLanes + lane] = from[d];
        }
    }

    static void products(const Rows& queries, int64_t count, const Rows& keys, int64_t key_count, int64_t width, const Rows& to) {
        for (int64_t k = 0; k < key_count; ++k) {
            const float* key = keys[k];
            for (int64_t q = 0; q < count; ++q) {
                const float* query = queries[q];
                Floats sums = {};
                for (int64_t d = 0; d < width; d += kLanes) sums += load(query + d) * load(key + d);
                to[q][k] = total(sums);
            }
        }
    }

    static void products_with_transposed(const Rows& queries, int64_t count, const float* keys, int64_t width, const Rows& to) {
        for (int64_t q = 0; q < count; ++q) {
            const float* query = queries[q];
            Floats sums[4] = {};
            for (int64_t d = 0; d < width; d += 4) {
                for (int64_t k = 0; k < 4; ++k) sums[k] += query[d + k] * load(keys + (d + k) * kLanes);
            }
            store(to[q], (sums[0] + sums[1]) + (sums[2] + sums[3]));
        }
    }

    /// to[i] += the sum over `count` j of (to_scores[i] . scores[j]) * rows[j], without going through the pairs.
    static void add_by_table(const Memory& memory, const Rows& scores, const Rows& rows, int64_t count, const Rows& to_scores,
                             const Rows& to, int64_t to_count) {
        const int64_t a = memory.score_width, b = memory.width;
        const Rows table = {memory.table, b};
        std::memset(table.data, 0, std::size_t(a * b) * sizeof(float));
        add_products<true>(table, a, scores, rows, count, b);
        add_products<false>(to, to_count, to_scores, table, a, b);
    }

    static void add_scores(const Memory& memory, const int32_t* i, int64_t l, const int32_t* j, int64_t s) {
        for (int64_t begin = 0; begin < memory.score_width; begin += kLanes) {
            Floats total = {};
            for (int64_t q = 0; q < l; ++q) total += load(memory.query_scores[i[q]] + begin);
            for (int64_t k = 0; k < s; ++k) {
                float* to = memory.score_sums[j[k]] + begin;
                store(to, load(to) + total);
            }
        }
    }
};

inline int pair_sums(const PairSums& job) { return for_each_item(job.of, job.of.sequences * job.of.heads, job.bytes(), job); }

inline int weighted_sum(const bk_lsh_weighted_sum& call) {
    return pair_sums({call.of, call.queries, call.keys, call.weight_width, call.width, 1.0f, call.query_weights,
                      call.key_weights, nullptr, call.values, call.sums, nullptr, nullptr});
}

inline int gradients(const bk_lsh_gradients& call) {
    return pair_sums({call.of, call.query_side, call.key_side, call.value_width, call.width, call.scale, call.grads, call.values,
                      call.queries, call.keys, call.query_grads, call.key_grads, call.value_grads});
}

}  // namespace
}  // namespace lsh
}  // namespace bertkit

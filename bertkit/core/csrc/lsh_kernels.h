// YOSO's kernels, once for all instruction sets: a level says how many floats, kLanes, it works on at a time.
//
// Vectors are those of GCC and Clang, which turn them into the instructions of the level. Sums are 32-bit floats.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

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
constexpr int64_t maximum(int64_t x, int64_t y) { return x < y ? y : x; }
constexpr int64_t parts_of(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

inline bool keeps(const uint8_t* mask, int64_t row) { return mask == nullptr || mask[row] != 0; }

/// Hands out numbers from 0 on, each once, to the threads that ask.
class Counter {
public:
    int64_t next() { return __atomic_fetch_add(&count_, 1, __ATOMIC_RELAXED); }

private:
    int64_t count_ = 0;
};

/// Run `job.work(item, memory)` for every item, with `bytes` of memory for each thread. Gives BK_OK, or what one of them gave.
template <typename Job>
int for_each_item(const bk_lsh& of, int64_t items, int64_t bytes, const Job& job) {
    struct Context {
        const Job& job;
        int64_t items, bytes;
        char* memory;
        Counter counter;
        int code;

        static void enter(const Worker& worker, void* context) {
            auto& self = *static_cast<Context*>(context);
            char* memory = self.memory + worker.thread * self.bytes;
            for (int64_t item; (item = self.counter.next()) < self.items;) {
                const int code = self.job.work(item, memory);
                if (code != BK_OK) __atomic_store_n(&self.code, code, __ATOMIC_RELAXED);
            }
        }
    };
    if (items == 0) return BK_OK;
    const int64_t threads = minimum(minimum(of.threads, items), kMostThreads);
    bytes = round_up(bytes, 4096);
    char* memory = static_cast<char*>(workspace(threads * bytes));
    if (memory == nullptr) return BK_NO_MEMORY;
    Context context{job, items, bytes, memory, {}, BK_OK};
    run(int(threads), of.openmp, &Context::enter, &context);
    return context.code;
}

/// Rows that come next are on their way to a cache, the first or the second one, while others are worked on.
template <int kCache = 1>
inline void fetch(const void* from, int64_t bytes) {
    const auto* line = static_cast<const char*>(from) - uintptr_t(from) % 64;
    const char* end = static_cast<const char*>(from) + bytes;
    for (; line < end; line += 64) __builtin_prefetch(line, 1, 4 - kCache);
}

// -- vectors and their lanes ---------------------------------------------------------------------------------------------
template <int... kLane>
using Lanes = std::integer_sequence<int, kLane...>;
using AllLanes = std::make_integer_sequence<int, kLanes>;

/// The lanes of two vectors, which are numbered on from one to the other, in another order.
template <int... kLane>
inline Floats shuffle(Floats x, Floats y, Lanes<kLane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, y, kLane...);
#else
    return __builtin_shuffle(x, y, Ints{kLane...});
#endif
}

/// Of each 2 * kRun lanes of x and of y the first kRun ones (kPart 0) or the others (kPart 1).
template <int kRun, int kPart, int... kLane>
constexpr auto runs(Lanes<kLane...>) {
    return Lanes<(kLane / kRun % 2 * kLanes + kLane / (2 * kRun) * 2 * kRun + kLane % kRun + kPart * kRun)...>{};
}

/// The sums of the lanes of x[0], x[1], ... x[2 * kRun - 1], one in each lane of x[0].
template <int kRun = kLanes / 2>
inline void add_lanes(Floats* x) {
    for (int i = 0; i < kRun; ++i) {
        x[i] = shuffle(x[i], x[i + kRun], runs<kRun, 0>(AllLanes())) + shuffle(x[i], x[i + kRun], runs<kRun, 1>(AllLanes()));
    }
    if constexpr (kRun > 1) add_lanes<kRun / 2>(x);
}

/// x[i][lane] becomes x[lane][i].
template <int kRun = kLanes / 2>
inline void transpose(Floats* x) {
    for (int i = 0; i < kLanes; ++i) {
        if (i & kRun) continue;
        const Floats first = shuffle(x[i], x[i + kRun], runs<kRun, 0>(AllLanes()));
        x[i + kRun] = shuffle(x[i], x[i + kRun], runs<kRun, 1>(AllLanes()));
        x[i] = first;
    }
    if constexpr (kRun > 1) transpose<kRun / 2>(x);
}

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

    /// Adds what is there, unless `counts` is 0.
    void add(const float* from, int32_t counts) {
        const Ints added = Ints{} + counts;
        for (int v = 0; v < kVectors; ++v) x[v] += added != 0 ? load(from + v * kLanes) : Floats{};
    }
};

// -- rows in memory ---------------------------------------------------------------------------------------------------
/// Rows that an index picks.
struct Rows {
    float* data;
    int64_t pitch;
    const int32_t* index;

    float* operator[](int64_t row) const { return data + index[row] * pitch; }
    Rows from(int64_t row) const { return {data, pitch, index + row}; }
};

/// Rows one after another, of whole vectors.
struct Matrix {
    float* data;
    int64_t pitch;

    float* operator[](int64_t row) const { return data + row * pitch; }
    Rows picked(const int32_t* index) const { return {data, pitch, index}; }
};

/// What is read of a group, of so many columns.
inline Matrix of_group(const bk_lsh_vectors& x, const bk_lsh& of, int64_t group, int64_t rows, int64_t columns) {
    auto* data = const_cast<float*>(x.data);  // nobody writes to these
    if (x.row == 0) return {data + group * rows * columns, columns};
    return {data + group / of.heads * x.sequence + group % of.heads * x.head, x.row};
}

/// Whether what is read is at hand for being read again and again: rows that lie apart share few places of a cache.
inline bool is_dense(const bk_lsh_vectors& x, int64_t columns) { return x.row == 0 || x.row == columns; }

inline void copy(const Matrix& from, int64_t rows, int64_t columns, const Matrix& to) {
    const std::size_t bytes = std::size_t(columns) * sizeof *from.data;
    for (int64_t row = 0; row < rows; ++row) std::memcpy(to[row], from[row], bytes);
}

// -- codes ----------------------------------------------------------------------------------------------------------
/// Butterflies of three (or two, or one) strides at a time, from `stride` on, over vectors of `size` numbers, one in each lane.
/// The order of additions is that of the reference, so that signs of sums near zero are, too. With signs, the first ones: each
/// number is multiplied by its sign before, which is exact, so that a product and a sum may be one instruction.
template <int kRadix>
void butterflies(const Floats* from, const float* signs, Floats* to, int64_t size, int64_t stride) {
    for (int64_t block = 0; block < size; block += kRadix * stride) {
        for (int64_t first = block; first < block + stride; ++first) {
            Floats y[kRadix];
            for (int i = 0; i < kRadix; i += 2) {
                const int64_t place = first + i * stride, next = place + stride;
                if (signs == nullptr) {
                    y[i] = from[place] + from[next];
                    y[i + 1] = from[place] - from[next];
                } else {
                    const Floats other = from[next] * signs[next];
                    y[i] = from[place] * signs[place] + other;
                    y[i + 1] = from[place] * signs[place] - other;
                }
            }
            for (int step = 2; step < kRadix; step *= 2) {
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

/// The codes of a group, [hashes, pitch]. That of a dropped row is one more than the largest.
struct Codes {
    const int32_t* data;
    int64_t pitch;

    const int32_t* operator[](int64_t hash) const { return data + hash * pitch; }
    Codes from(int64_t hash) const { return {(*this)[hash], pitch}; }
};

/// The codes of one side.
struct Hash {
    static constexpr int64_t kProjections = 64;  // that are made at once

    const bk_lsh& of;
    const bk_lsh_functions& functions;
    const bk_lsh_side& side;

    bool transforms() const { return functions.parts > 0; }
    int64_t columns() const { return transforms() ? functions.size : round_up(functions.width, kLanes); }
    int64_t bits_at_once() const { return transforms() ? functions.size : kProjections; }

    int32_t capacity() const { return int32_t(1) << of.code_bits; }
    /// An odd number of cache lines: neighbours of different hashes do not get into each other's way.
    int64_t pitch() const { return round_up(side.rows, 32) + 16; }

    /// Memory for hashing.
    int64_t bytes() const {
        return (columns() + bits_at_once() + round_up(of.hashes, kLanes)) * int64_t(sizeof(Floats));
    }
    /// Memory for the codes of a group.
    int64_t group_bytes() const { return of.hashes * pitch() * int64_t(sizeof(int32_t)); }

    /// The codes of a group; none where a given one has no bucket: it would lead out of the table.
    Codes group_codes(int64_t group, char* memory, char* codes_memory) const {
        auto* codes = reinterpret_cast<int32_t*>(codes_memory);
        uint32_t all = 0;  // given codes are below a power of two where their bits together are
        for (int64_t row = 0; row < side.rows; row += kLanes) {
            const int64_t count = minimum(kLanes, side.rows - row);
            if (side.codes == nullptr) {
                const Floats* found = hash_rows(group, row, count, memory);
                for (int64_t m = 0; m < of.hashes; ++m) std::memcpy(codes + m * pitch() + row, found + m, sizeof *found);
            } else {
                all |= copy_codes(side.codes + (group * side.rows + row) * of.hashes, count, codes + row);
            }
        }
        const uint8_t* mask = mask_of_group(group);
        for (int64_t row = 0; row < side.rows; ++row) {
            if (keeps(mask, row)) continue;
            for (int64_t m = 0; m < of.hashes; ++m) codes[m * pitch() + row] = capacity();
        }
        return {all < uint32_t(capacity()) ? codes : nullptr, pitch()};
    }

    /// Gives the bits of all of them together.
    uint32_t copy_codes(const int32_t* given, int64_t count, int32_t* codes) const {
        uint32_t all = 0;
        for (int64_t m = 0; m < of.hashes; ++m) {
            for (int64_t i = 0; i < count; ++i) {
                codes[m * pitch() + i] = given[i * of.hashes + m];
                all |= uint32_t(codes[m * pitch() + i]);
            }
        }
        return all;
    }

    const uint8_t* mask_of_group(int64_t group) const {
        return side.mask == nullptr ? nullptr : side.mask + group / of.heads * side.rows;
    }

    /// Some rows of a group, one in each lane. Gives a vector for each hash, in `memory`.
    const Floats* hash_rows(int64_t group, int64_t row, int64_t count, char* memory) const {
        const int64_t projections = of.hashes * of.code_bits;
        const int64_t of_head = transforms() ? 3 * functions.parts * functions.size : functions.width * projections;
        auto* vectors = reinterpret_cast<Floats*>(memory);
        Floats *bits = vectors + columns(), *codes = bits + bits_at_once();
        const Matrix all = of_group(side.vectors, of, group, side.rows, functions.width);
        read({all[row], all.pitch}, count, vectors);
        hash(vectors, functions.numbers + group % of.heads * of_head, bits, codes, {all[row + kLanes], all.pitch});
        return codes;
    }

    /// Some rows, one in each lane, filled up with zeros.
    void read(const Matrix& rows, int64_t count, Floats* vectors) const {
        std::memset(vectors, 0, std::size_t(columns()) * sizeof *vectors);
        for (int64_t d = 0; d < functions.width; d += kLanes) {
            Floats x[kLanes] = {};
            for (int64_t i = 0; i < count; ++i) x[i] = Row<1>::read(rows[i] + d, functions.width - d).x[0];
            transpose(x);
            std::memcpy(vectors + d, x, sizeof x);
        }
    }

    /// The next rows come in parts: all at once, they would have to wait for one another.
    void hash(const Floats* vectors, const float* numbers, Floats* x, Floats* codes, const Matrix& next_rows) const {
        const int64_t bits = of.code_bits, step = bits_at_once() / bits;
        const int64_t share = parts_of(kLanes, parts_of(of.hashes, step));
        for (int64_t first = 0, row = 0; first < of.hashes; first += step) {
            const int64_t count = minimum(step, of.hashes - first);
            for (const int64_t end = minimum(row + share, kLanes); row < end; ++row) {
                fetch(next_rows[row], functions.width * int64_t(sizeof(float)));
            }
            if (transforms()) {
                transform(vectors, numbers + first / step * functions.size, x);
            } else {
                project(vectors, numbers + first * bits, count * bits, x);
            }
            pack(x, codes + first, count);
        }
    }

    /// Codes of the signs of so many numbers each.
    template <int kCodes = 4>
    void pack(const Floats* x, Floats* codes, int64_t count) const {
        const int64_t bits = of.code_bits;
        for (; count >= kCodes; count -= kCodes, x += kCodes * bits, codes += kCodes) {
            Ints found[kCodes] = {}, bit = Ints{} + 1;
            for (int64_t i = 0; i < bits; ++i, bit += bit) {
                for (int c = 0; c < kCodes; ++c) found[c] = x[c * bits + i] > 0 ? found[c] | bit : found[c];
            }
            std::memcpy(codes, found, sizeof found);
        }
        if constexpr (kCodes > 1) pack<kCodes / 2>(x, codes, count);
    }

    void transform(const Floats* vectors, const float* signs, Floats* x) const {
        for (int64_t step = 0; step < 3; ++step, signs += functions.parts * functions.size) {
            hadamard_transform(step == 0 ? vectors : x, signs, x, functions.size);
        }
    }

    void project(const Floats* vectors, const float* projections, int64_t count, Floats* x) const {
        constexpr int64_t kAtOnce = 8;
        if (count < kAtOnce) {
            for (int64_t i = 0; i < count; ++i) products<1>(vectors, projections + i, x + i);
            return;
        }
        for (int64_t i = 0; i < count; i += kAtOnce) {
            const int64_t begin = minimum(i, count - kAtOnce);
            products<kAtOnce>(vectors, projections + begin, x + begin);
        }
    }

    template <int kCount>
    void products(const Floats* vectors, const float* projections, Floats* x) const {
        Floats sums[kCount] = {};
        for (int64_t d = 0; d < functions.width; ++d, projections += of.hashes * of.code_bits) {
            for (int i = 0; i < kCount; ++i) sums[i] += vectors[d] * projections[i];
        }
        for (int i = 0; i < kCount; ++i) x[i] = sums[i];
    }
};

/// Hash rows, some at a time.
struct HashRows {
    static constexpr int64_t kRows = 16 * kLanes;

    const bk_lsh_hash& call;
    Hash hash{call.of, call.functions, call.side};

    int64_t items_of_group() const { return parts_of(call.side.rows, kRows); }
    int64_t bytes() const { return hash.bytes(); }
    int work(int64_t item, char* memory) const {
        const int64_t group = item / items_of_group(), begin = item % items_of_group() * kRows, hashes = call.of.hashes;
        const uint8_t* mask = hash.mask_of_group(group);
        for (int64_t row = begin; row < minimum(begin + kRows, call.side.rows); row += kLanes) {
            const int64_t count = minimum(kLanes, call.side.rows - row);
            int32_t* codes = call.codes + (group * call.side.rows + row) * hashes;
            write(hash.hash_rows(group, row, count, memory), count, codes);
            for (int64_t i = 0; i < count; ++i) {
                if (!keeps(mask, row + i)) std::memset(codes + i * hashes, 0, std::size_t(hashes) * sizeof *codes);
            }
        }
        return BK_OK;
    }

    void write(const Floats* codes, int64_t count, int32_t* to) const {
        for (int64_t m = 0; m < call.of.hashes; m += kLanes) {
            Floats rows[kLanes];
            std::memcpy(rows, codes + m, sizeof rows);
            transpose(rows);
            for (int64_t i = 0; i < count; ++i) {
                Row<1>{{rows[i]}}.write(reinterpret_cast<float*>(to + i * call.of.hashes + m), call.of.hashes - m);
            }
        }
    }
};

inline int hash(const bk_lsh_hash& call) {
    const HashRows job{call};
    return for_each_item(call.of, call.of.sequences * call.of.heads * job.items_of_group(), job.bytes(), job);
}

/// Sums over the rows of a group that collide.
template <typename Sums>
struct Groups {
    Hash queries, keys;
    Sums sums;

    int64_t codes_bytes() const { return queries.group_bytes() + keys.group_bytes(); }
    int64_t bytes() const { return codes_bytes() + maximum(sums.bytes(), maximum(queries.bytes(), keys.bytes())); }
    int work(int64_t group, char* memory) const {
        char* rest = memory + codes_bytes();
        const Codes query_codes = queries.group_codes(group, rest, memory);
        const Codes key_codes = keys.group_codes(group, rest, memory + queries.group_bytes());
        if (query_codes.data == nullptr || key_codes.data == nullptr) return BK_BAD_CODE;
        sums.add(group, query_codes, key_codes, rest);
        return BK_OK;
    }
};

template <typename Sums>
int add_groups(const bk_lsh& of, const bk_lsh_functions& functions, const bk_lsh_side& queries, const bk_lsh_side& keys,
               const Sums& sums) {
    const Groups<Sums> job{{of, functions, queries}, {of, functions, keys}, sums};
    return for_each_item(of, of.sequences * of.heads, job.bytes(), job);
}

// -- sums -----------------------------------------------------------------------------------------------------------
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

    int64_t capacity() const { return int64_t(1) << of.code_bits; }
    int64_t hashes_at_once(int64_t vectors) const {
        const int64_t fit = kTableBytes / (capacity() * vectors * int64_t(sizeof(Floats)));
        return minimum(minimum(maximum(fit, 1), kMostHashes), of.hashes);
    }
    int64_t copy_bytes() const {
        return is_dense(values, width) ? 0 : round_up(keys.rows * width * int64_t(sizeof(float)), 64);
    }
    int64_t bytes() const {
        int64_t most = 0;  // not always that of the widest columns: narrower ones have tables of more hashes at once
        for (int64_t vectors = next_vectors(width); vectors > 0; vectors /= 2) {
            const int64_t bucket = vectors * int64_t(sizeof(Floats)) + int64_t(sizeof(int32_t));
            most = maximum(most, hashes_at_once(vectors) * capacity() * bucket);
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
        const int64_t hashes = of.hashes, step = hashes_at_once(kVectors), columns = width - begin, buckets = capacity();
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

inline int sum(const bk_lsh_sum& call) {
    const Sum sums{call.of, call.queries, call.keys, call.width, call.values, call.sums};
    return add_groups(call.of, call.functions, call.queries, call.keys, sums);
}

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

// -- weighted sums and gradients --------------------------------------------------------------------------------------
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

    int64_t capacity() const { return int64_t(1) << of.code_bits; }
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
        side.buckets = {walk.take<int32_t>(capacity() + 1), walk.take<int32_t>(capacity() + 1)};
        return side;
    }

    Memory place(Walk& walk) const {
        Memory memory = {};
        memory.queries = place_side(walk, queries.rows, query_scores, query_rows, both(), true);
        memory.keys = place_side(walk, keys.rows, key_scores, key_rows, true, both());
        const int64_t a = memory.queries.scores.pitch, b = memory.keys.rows.pitch;
        memory.codes = walk.take<int32_t>(capacity());
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
        query.buckets.sort(query_codes, queries.rows, capacity(), query_order);
        key.buckets.sort(key_codes, keys.rows, capacity(), key_order);
        int32_t places[kSizes * kSizes + 1] = {};
        const auto size_of = [&](int64_t code) {
            return minimum(query.buckets.sizes[code], kSizes - 1) * kSizes + minimum(key.buckets.sizes[code], kSizes - 1);
        };
        for (int64_t code = 0; code < capacity(); ++code) ++places[size_of(code) + 1];
        for (int64_t size = 0; size < kSizes * kSizes; ++size) places[size + 1] += places[size];
        for (int64_t code = 0; code < capacity(); ++code) memory.codes[places[size_of(code)]++] = int32_t(code);
        for (int64_t i = 0; i < capacity(); ++i) {
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

inline int weighted_sum(const bk_lsh_weighted_sum& call) {
    const PairSums sums{call.of, call.queries, call.keys, call.weight_width, call.width, 1.0f, call.query_weights,
                        call.key_weights, {}, call.values, call.sums, nullptr};
    return add_groups(call.of, {}, call.queries, call.keys, sums);
}

struct Gradients {
    Sum of_values;
    PairSums of_both;

    int64_t bytes() const { return maximum(of_values.bytes(), of_both.bytes()); }
    void add(int64_t group, const Codes& query_codes, const Codes& key_codes, char* memory) const {
        of_values.add(group, key_codes, query_codes, memory);
        of_both.add(group, query_codes, key_codes, memory);
    }
};

inline int gradients(const bk_lsh_gradients& call) {
    const bk_lsh_side &queries = call.queries, &keys = call.keys;
    const Gradients sums{{call.of, keys, queries, call.width, call.grads, call.value_grads},
                         {call.of, queries, keys, call.width, call.functions.width, call.scale, call.grads, call.values,
                          queries.vectors, keys.vectors, call.query_grads, call.key_grads}};
    return add_groups(call.of, call.functions, queries, keys, sums);
}

}  // namespace
}  // namespace lsh
}  // namespace bertkit

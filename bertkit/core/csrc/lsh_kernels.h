// YOSO's kernels, once for all instruction sets: a level says how many floats, kLanes, it works on at a time.
//
// Vectors are those of GCC and Clang, which turn them into the instructions of the level. Sums are 32-bit floats.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

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

/// Rows that come next are on their way while others are worked on.
inline void fetch(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 1);
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

    /// Adds what is there where all bits of `mask` are set, and nothing where none is.
    void add(const float* from, int32_t mask) {
        const Ints bits = Ints{} + mask;
        for (int v = 0; v < kVectors; ++v) x[v] += Floats(Ints(load(from + v * kLanes)) & bits);
    }
};

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

/// The codes of one side.
struct Hash {
    static constexpr int64_t kProjections = 64;  // that are made at once

    const bk_lsh& of;
    const bk_lsh_functions& functions;
    const bk_lsh_side& side;

    bool transforms() const { return functions.parts > 0; }
    int64_t columns() const { return transforms() ? functions.size : round_up(functions.width, kLanes); }
    int64_t bits_at_once() const { return transforms() ? functions.size : kProjections; }

    /// Memory for hashing, and for all codes of a group, where they are not given.
    int64_t bytes() const {
        return (columns() + bits_at_once() + round_up(of.hashes, kLanes)) * int64_t(sizeof(Floats));
    }
    int64_t group_bytes() const { return side.codes != nullptr ? 0 : round_up(code_count() * int64_t(sizeof(int32_t)), 64); }
    int64_t code_count() const { return side.rows * of.hashes; }

    /// The codes of a group, [rows, hashes]; null where a given one has no bucket: it would lead out of the table.
    const int32_t* group_codes(int64_t group, char* memory, char* codes_memory) const {
        if (side.codes == nullptr) {
            auto* codes = reinterpret_cast<int32_t*>(codes_memory);
            hash_rows(group, 0, side.rows, memory, codes);
            return codes;
        }
        const int32_t* codes = side.codes + group * code_count();
        uint32_t all = 0;  // codes are below a power of two where their bits together are
        for (int64_t i = 0; i < code_count(); ++i) all |= uint32_t(codes[i]);
        return all < uint32_t(1) << of.code_bits ? codes : nullptr;
    }

    /// Some rows of a group, whose codes go to the same rows of `codes`.
    void hash_rows(int64_t group, int64_t begin, int64_t end, char* memory, int32_t* codes) const {
        const uint8_t* mask = mask_of(side.mask, group / of.heads, side.rows);
        const int64_t of_head = transforms() ? 3 * functions.parts * functions.size : functions.width * of.hashes * of.code_bits;
        const float* numbers = functions.numbers + group % of.heads * of_head;
        const std::size_t row_bytes = std::size_t(functions.width) * sizeof(float);
        const std::size_t code_bytes = std::size_t(of.hashes) * sizeof *codes;
        auto* vectors = reinterpret_cast<Floats*>(memory);
        Floats *bits = vectors + columns(), *found = bits + bits_at_once();
        for (int64_t row = begin; row < end; row += kLanes) {
            const int64_t count = minimum(kLanes, end - row);
            const float* rows = side.vectors + (group * side.rows + row) * functions.width;
            read(rows, count, vectors);
            fetch(rows + kLanes * functions.width, kLanes * row_bytes);
            fetch(codes + (row + kLanes) * of.hashes, kLanes * code_bytes);
            hash(vectors, numbers, bits, found);
            write(found, count, codes + row * of.hashes);
            for (int64_t i = 0; i < count; ++i) {
                if (!keeps(mask, row + i)) std::memset(codes + (row + i) * of.hashes, 0, code_bytes);
            }
        }
    }

    /// Some rows, one in each lane, filled up with zeros.
    void read(const float* rows, int64_t count, Floats* vectors) const {
        std::memset(vectors, 0, std::size_t(columns()) * sizeof *vectors);
        for (int64_t d = 0; d < functions.width; d += kLanes) {
            Floats x[kLanes] = {};
            for (int64_t i = 0; i < count; ++i) x[i] = Row<1>::read(rows + i * functions.width + d, functions.width - d).x[0];
            transpose(x);
            std::memcpy(vectors + d, x, sizeof x);
        }
    }

    void hash(const Floats* vectors, const float* numbers, Floats* x, Floats* codes) const {
        const int64_t bits = of.code_bits, step = bits_at_once() / bits;
        for (int64_t first = 0; first < of.hashes; first += step) {
            const int64_t count = minimum(step, of.hashes - first);
            if (transforms()) {
                transform(vectors, numbers + first / step * functions.size, x);
            } else {
                project(vectors, numbers + first * bits, count * bits, x);
            }
            for (int64_t m = 0; m < count; ++m) {
                Ints code = {}, bit = code + 1;
                for (int64_t i = m * bits; i < (m + 1) * bits; ++i, bit += bit) code |= (x[i] > 0) & bit;
                codes[first + m] = Floats(code);
            }
        }
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

    void write(const Floats* codes, int64_t count, int32_t* to) const {
        for (int64_t m = 0; m < of.hashes; m += kLanes) {
            Floats rows[kLanes];
            std::memcpy(rows, codes + m, sizeof rows);
            transpose(rows);
            const int64_t columns = of.hashes - m;
            for (int64_t i = 0; i < count; ++i) {
                Row<1>{{rows[i]}}.write(reinterpret_cast<float*>(to + i * of.hashes + m), columns);
            }
        }
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
        const int64_t group = item / items_of_group(), begin = item % items_of_group() * kRows;
        hash.hash_rows(group, begin, minimum(begin + kRows, call.side.rows), memory, call.codes + group * hash.code_count());
        return BK_OK;
    }
};

inline int hash(const bk_lsh_hash& call) {
    const HashRows job{call};
    return for_each_item(call.of, call.of.sequences * call.of.heads * job.items_of_group(), job.bytes(), job);
}

/// Sums over the rows of a group that collide. The codes are given, or hashed first: those of a group fit a cache.
template <typename Sums>
struct Groups {
    Hash queries, keys;
    Sums sums;

    int64_t codes_bytes() const { return queries.group_bytes() + keys.group_bytes(); }
    int64_t bytes() const { return codes_bytes() + maximum(sums.bytes(), maximum(queries.bytes(), keys.bytes())); }
    int work(int64_t group, char* memory) const {
        char* rest = memory + codes_bytes();
        const int32_t* query_codes = queries.group_codes(group, rest, memory);
        const int32_t* key_codes = keys.group_codes(group, rest, memory + queries.group_bytes());
        if (query_codes == nullptr || key_codes == nullptr) return BK_BAD_CODE;
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

    const bk_lsh& of;
    const bk_lsh_side &queries, &keys;
    int64_t width;
    const float* values;
    float* sums;

    int64_t capacity() const { return int64_t(1) << of.code_bits; }
    int64_t hashes_at_once(int64_t vectors) const {
        const int64_t fit = kTableBytes / (capacity() * vectors * int64_t(sizeof(Floats)));
        return minimum(minimum(fit < 1 ? 1 : fit, kMostHashes), of.hashes);
    }
    int64_t bytes() const {
        int64_t most = 0;
        for (int64_t vectors = next_vectors(width); vectors > 0; vectors /= 2) {
            const int64_t bucket = vectors * int64_t(sizeof(Floats)) + int64_t(sizeof(int32_t));
            most = maximum(most, hashes_at_once(vectors) * capacity() * bucket);
        }
        return most;
    }

    void add(int64_t group, const int32_t* query_codes, const int32_t* key_codes, char* memory) const {
        auto* table = reinterpret_cast<float*>(memory);
        for (int64_t begin = 0; begin < width; begin += next_vectors(width - begin) * kLanes) {
            switch (next_vectors(width - begin)) {
                case 8: add_columns<8>(group, begin, query_codes, key_codes, table); break;
                case 4: add_columns<4>(group, begin, query_codes, key_codes, table); break;
                case 2: add_columns<2>(group, begin, query_codes, key_codes, table); break;
                default: add_columns<1>(group, begin, query_codes, key_codes, table);
            }
        }
    }

    template <int kVectors>
    void add_columns(int64_t group, int64_t begin, const int32_t* query_codes, const int32_t* key_codes, float* table) const {
        constexpr int64_t kPitch = kVectors * kLanes;
        const int64_t hashes = of.hashes, step = hashes_at_once(kVectors), columns = width - begin;
        const uint8_t* key_mask = mask_of(keys.mask, group / of.heads, keys.rows);
        const uint8_t* query_mask = mask_of(queries.mask, group / of.heads, queries.rows);
        const float* from = values + group * keys.rows * width + begin;
        float* to = sums + group * queries.rows * width + begin;
        // A bucket counts once a key was added to it; before, it holds anything. Clearing takes long where keys are few.
        auto* filled = reinterpret_cast<int32_t*>(table + step * capacity() * kPitch);
        for (int64_t first = 0; first < hashes; first += step) {
            const int64_t count = minimum(step, hashes - first);
            std::memset(filled, 0, std::size_t(count * capacity()) * sizeof *filled);
            for (int64_t key = 0; key < keys.rows; ++key) {
                if (!keeps(key_mask, key)) continue;
                const auto value = Row<kVectors>::read(from + key * width, columns);
                for (int64_t m = 0; m < count; ++m) {
                    const int64_t bucket = m * capacity() + key_codes[key * hashes + first + m];
                    Row<kVectors> sum = value;
                    sum.add(table + bucket * kPitch, filled[bucket]);
                    sum.write(table + bucket * kPitch, kPitch);
                    filled[bucket] = -1;
                }
            }
            for (int64_t query = 0; query < queries.rows; ++query) {
                float* row = to + query * width;
                Row<kVectors> total = {};
                if (keeps(query_mask, query)) {
                    if (first > 0) total = Row<kVectors>::read(row, columns);
                    for (int64_t m = 0; m < count; ++m) {
                        const int64_t bucket = m * capacity() + query_codes[query * hashes + first + m];
                        total.add(table + bucket * kPitch, filled[bucket]);
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
/// Rows of one width, or those that an index picks.
struct Rows {
    float* data;
    int64_t pitch;
    const int32_t* index = nullptr;

    float* operator[](int64_t row) const { return data + (index == nullptr ? row : index[row]) * pitch; }
    Rows picked(const int32_t* rows) const { return {data, pitch, rows}; }
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

template <int... kLane>
constexpr Ints numbered(Lanes<kLane...>) {
    return Ints{kLane...};
}

// -- weighted sums and gradients --------------------------------------------------------------------------------------
constexpr int kTile = 4;  // queries, and keys, that are worked on together

/// The rows of one side in the order of their codes. Each code begins at a multiple of kTile; where its last rows are fewer,
/// one of them stands in for the others.
struct Buckets {
    int32_t* sizes;   // [capacity + 1]
    int32_t* begins;  // [capacity + 1]

    /// Rows whose code is the capacity are dropped.
    void sort(const int32_t* codes, int64_t count, int64_t capacity, int32_t* rows) {
        std::memset(sizes, 0, std::size_t(capacity + 1) * sizeof *sizes);
        for (int64_t row = 0; row < count; ++row) ++sizes[codes[row]];
        int32_t end = 0;
        for (int64_t code = 0; code <= capacity; ++code) {
            begins[code] = end;
            end += (sizes[code] + kTile - 1) / kTile * kTile;
        }
        for (int64_t row = 0; row < count; ++row) rows[begins[codes[row]]++] = int32_t(row);
        for (int64_t code = 0; code < capacity; ++code) {
            end = begins[code];
            for (int32_t at = end; at % kTile != 0; ++at) rows[at] = rows[end / kTile * kTile];
            begins[code] = end - sizes[code];
        }
    }

    /// The most rows with what stands in.
    static int64_t most_rows(int64_t count, int64_t capacity) { return count + (kTile - 1) * (minimum(count, capacity) + 1); }
};

/// Some queries and keys that share a code, kTile of each with what stands in.
struct Tile {
    const int32_t *queries, *keys;
    int32_t query_count, key_count;
};

/// Everything that is summed over pairs of a query and a key that collide, weighted by the dot product of their scores.
///
/// The rows of a bucket are anywhere in memory. So first come all weights of some hashes, then all sums of the queries, then
/// those of the keys: each of the three walks to and fro in two arrays, which a cache holds. They walk along a list of tiles of
/// one size, since how full buckets are cannot be foreseen, neither by a processor.
struct PairSums {
    static constexpr int64_t kMostTiles = 1 << 13;  // that are kept before their weights are used
    static constexpr int64_t kMostHashes = 8, kMostRows = 1 << 17;  // that are sorted at once
    static constexpr int kVectors = kLanes / kTile;  // of a row, that are summed at once

    const bk_lsh& of;
    const bk_lsh_side &queries, &keys;
    int64_t score_width, width;
    float scale;
    const float *query_scores, *key_scores;  // [rows, score_width]
    const float *query_rows, *key_rows;      // [rows, width]; the first is null where only the queries get something
    float *query_sums, *key_sums;            // [rows, width]: of the rows of the other side, weighted

    int64_t capacity() const { return int64_t(1) << of.code_bits; }
    bool both() const { return key_sums != nullptr; }
    int64_t hashes_at_once() const {
        const int64_t rows = queries.rows > keys.rows ? queries.rows : keys.rows;
        const int64_t fit = kMostRows / (rows + 1);
        return minimum(minimum(fit < 1 ? 1 : fit, kMostHashes), of.hashes);
    }

    /// One side of a group. Rows are whole vectors: copies, where the caller's are not.
    struct Side {
        Rows scores, rows, sums;
        int32_t *codes, *order;  // [hashes at once, pitch]
        int64_t code_pitch, order_pitch;
        Buckets buckets;
    };

    struct Memory {
        Side queries, keys;
        float *weights, *table;
        Tile* tiles;
        int64_t tile_count;

        float* weights_of(int64_t tile) const { return weights + tile * kTile * kTile; }
    };

    Side place_side(Walk& walk, int64_t count, bool has_sums, bool has_rows) const {
        const auto copies = [&](int64_t columns, bool has) {
            const int64_t pitch = round_up(columns, kLanes);
            return Rows{has && pitch != columns ? walk.take<float>(count * pitch) : nullptr, pitch};
        };
        Side side = {copies(score_width, true), copies(width, has_rows), copies(width, has_sums), nullptr, nullptr, 0, 0, {}};
        // An odd number of cache lines: neighbours of different hashes do not get into each other's way.
        side.code_pitch = round_up(count, 32) + 16;
        side.order_pitch = Buckets::most_rows(count, capacity());
        side.codes = walk.take<int32_t>(hashes_at_once() * side.code_pitch);
        side.order = walk.take<int32_t>(hashes_at_once() * side.order_pitch);
        side.buckets = {walk.take<int32_t>(capacity() + 1), walk.take<int32_t>(capacity() + 1)};
        return side;
    }

    Memory place(Walk& walk) const {
        Memory memory = {};
        memory.queries = place_side(walk, queries.rows, true, both());
        memory.keys = place_side(walk, keys.rows, both(), true);
        memory.weights = walk.take<float>(kMostTiles * kTile * kTile);
        memory.tiles = walk.take<Tile>(kMostTiles);
        memory.table = walk.take<float>(memory.queries.scores.pitch * memory.keys.rows.pitch);
        return memory;
    }

    int64_t bytes() const {
        Walk walk(nullptr);
        place(walk);
        return walk.size();
    }

    void add(int64_t group, const int32_t* query_codes, const int32_t* key_codes, char* thread_memory) const {
        Walk walk(thread_memory);
        Memory memory = place(walk);
        const int64_t l = queries.rows, s = keys.rows;
        fill(memory.queries.scores, query_scores + group * l * score_width, l, score_width);
        fill(memory.keys.scores, key_scores + group * s * score_width, s, score_width);
        fill(memory.keys.rows, key_rows + group * s * width, s, width);
        clear(memory.queries.sums, query_sums + group * l * width, l, width);
        if (both()) {
            fill(memory.queries.rows, query_rows + group * l * width, l, width);
            clear(memory.keys.sums, key_sums + group * s * width, s, width);
        }
        for (int64_t first = 0; first < of.hashes; first += hashes_at_once()) {
            const int64_t count = minimum(hashes_at_once(), of.hashes - first);
            read_codes(queries, group, query_codes + first, count, memory.queries);
            read_codes(keys, group, key_codes + first, count, memory.keys);
            for (int64_t m = 0; m < count; ++m) add_hash(memory, m);
            add_tiles(memory);
        }
        finish(memory.queries.sums, l, query_sums + group * l * width);
        if (both()) finish(memory.keys.sums, s, key_sums + group * s * width);
    }

    /// Rows of the caller, where they are whole vectors, else copies of them.
    static void fill(Rows& rows, const float* from, int64_t count, int64_t columns) {
        if (rows.pitch == columns) {
            rows.data = const_cast<float*>(from);  // nobody writes to these
            return;
        }
        std::memset(rows.data, 0, std::size_t(count * rows.pitch) * sizeof(float));
        const std::size_t bytes = std::size_t(columns) * sizeof *from;
        for (int64_t row = 0; row < count; ++row) std::memcpy(rows[row], from + row * columns, bytes);
    }
    static void clear(Rows& sums, float* to, int64_t count, int64_t columns) {
        if (sums.pitch == columns) sums.data = to;
        std::memset(sums.data, 0, std::size_t(count * sums.pitch) * sizeof(float));
    }
    void finish(const Rows& sums, int64_t count, float* to) const {
        const float factor = scale / float(of.hashes);
        for (int64_t row = 0; row < count; ++row) {
            for (int64_t d = 0; d < width; ++d) to[row * width + d] = sums[row][d] * factor;
        }
    }

    void read_codes(const bk_lsh_side& side, int64_t group, const int32_t* codes, int64_t count, Side& to) const {
        const uint8_t* mask = mask_of(side.mask, group / of.heads, side.rows);
        for (int64_t row = 0; row < side.rows; ++row) {
            const bool kept = keeps(mask, row);
            for (int64_t m = 0; m < count; ++m) {
                to.codes[m * to.code_pitch + row] = kept ? codes[row * of.hashes + m] : int32_t(capacity());
            }
        }
    }

    void add_hash(Memory& memory, int64_t m) const {
        Side &query = memory.queries, &key = memory.keys;
        int32_t *query_order = query.order + m * query.order_pitch, *key_order = key.order + m * key.order_pitch;
        query.buckets.sort(query.codes + m * query.code_pitch, queries.rows, capacity(), query_order);
        key.buckets.sort(key.codes + m * key.code_pitch, keys.rows, capacity(), key_order);
        for (int64_t code = 0; code < capacity(); ++code) {
            const int32_t l = query.buckets.sizes[code], s = key.buckets.sizes[code];
            if (l > 0 && s > 0) {
                add_bucket(memory, query_order + query.buckets.begins[code], l, key_order + key.buckets.begins[code], s);
            }
        }
    }

    void add_bucket(Memory& memory, const int32_t* i, int32_t l, const int32_t* j, int32_t s) const {
        const Side &query = memory.queries, &key = memory.keys;
        const int64_t a = key.scores.pitch, b = key.rows.pitch;
        // What each pair costs, against what a table of a x b numbers costs, to which keys add and which queries read.
        if (int64_t(l) * s * (a + b) > (int64_t(l) + s) * a * b) {
            add_by_table(memory.table, key, j, s, query, i, l);
            if (both()) add_by_table(memory.table, query, i, l, key, j, s);
            return;
        }
        for (int32_t q = 0; q < l; q += kTile) {
            for (int32_t k = 0; k < s; k += kTile) {
                if (memory.tile_count == kMostTiles) add_tiles(memory);
                memory.tiles[memory.tile_count++] = {i + q, j + k, l - q, s - k};
            }
        }
    }

    void add_tiles(Memory& memory) const {
        for (int64_t t = 0; t < memory.tile_count; ++t) {
            weigh(memory.tiles[t], memory.queries.scores, memory.keys.scores, memory.weights_of(t));
        }
        add_columns<kVectors>(memory, 0);
        memory.tile_count = 0;
    }

    /// weights[4 * q + k] = query q . key k
    static void weigh(const Tile& tile, const Rows& queries, const Rows& keys, float* weights) {
        constexpr Ints lanes = numbered(AllLanes());
        const float *query[kTile], *key[kTile];
        for (int i = 0; i < kTile; ++i) {
            query[i] = queries[tile.queries[i]];
            key[i] = keys[tile.keys[i]];
        }
        for (int first = 0; first < kTile; first += kVectors) {
            Floats sums[kLanes] = {};
            for (int64_t d = 0; d < queries.pitch; d += kLanes) {
                Floats y[kTile];
                for (int k = 0; k < kTile; ++k) y[k] = load(key[k] + d);
                for (int q = 0; q < kVectors; ++q) {
                    const Floats x = load(query[first + q] + d);
                    for (int k = 0; k < kTile; ++k) sums[q * kTile + k] += x * y[k];
                }
            }
            add_lanes(sums);
            const Ints real = (lanes / kTile + first < tile.query_count) & (lanes % kTile < tile.key_count);
            store(weights + first * kTile, Floats(Ints(sums[0]) & real));
        }
    }

    template <int kVectorsAtOnce>
    void add_columns(const Memory& memory, int64_t begin) const {
        const Side &query = memory.queries, &key = memory.keys;
        for (; begin + kVectorsAtOnce * kLanes <= key.rows.pitch; begin += kVectorsAtOnce * kLanes) {
            for (int64_t t = 0; t < memory.tile_count; ++t) {
                const Tile& tile = memory.tiles[t];
                add<kVectorsAtOnce, false>(query.sums, tile.queries, key.rows, tile.keys, memory.weights_of(t), begin);
            }
            for (int64_t t = 0; both() && t < memory.tile_count; ++t) {
                const Tile& tile = memory.tiles[t];
                add<kVectorsAtOnce, true>(key.sums, tile.keys, query.rows, tile.queries, memory.weights_of(t), begin);
            }
        }
        if constexpr (kVectorsAtOnce > 1) add_columns<1>(memory, begin);
    }

    /// sums[to[i]] += the sum over j of the weight of i and j * rows[from[j]], for some columns.
    template <int kVectorsAtOnce, bool kToKeys>
    static void add(const Rows& sums, const int32_t* to, const Rows& rows, const int32_t* from, const float* weights,
                    int64_t begin) {
        float* sum[kTile];
        Floats total[kTile][kVectorsAtOnce];
        for (int i = 0; i < kTile; ++i) {
            sum[i] = sums[to[i]] + begin;
            for (int v = 0; v < kVectorsAtOnce; ++v) total[i][v] = load(sum[i] + v * kLanes);
        }
        for (int j = 0; j < kTile; ++j) {
            const float* row = rows[from[j]] + begin;
            for (int v = 0; v < kVectorsAtOnce; ++v) {
                const Floats x = load(row + v * kLanes);
                for (int i = 0; i < kTile; ++i) total[i][v] += weights[kToKeys ? j * kTile + i : i * kTile + j] * x;
            }
        }
        for (int i = kTile - 1; i >= 0; --i) {  // the first row last: others may stand in for it, and know nothing of its sum
            for (int v = 0; v < kVectorsAtOnce; ++v) store(sum[i] + v * kLanes, total[i][v]);
        }
    }

    /// The same for all of a bucket without going through its pairs: `to` gets the sums of what `from` has.
    static void add_by_table(float* memory, const Side& from, const int32_t* rows, int64_t count, const Side& to,
                             const int32_t* to_rows, int64_t to_count) {
        const int64_t a = from.scores.pitch, b = from.rows.pitch;
        const Rows table = {memory, b};
        std::memset(table.data, 0, std::size_t(a * b) * sizeof(float));
        add_products<true>(table, a, from.scores.picked(rows), from.rows.picked(rows), count, b);
        add_products<false>(to.sums.picked(to_rows), to_count, to.scores.picked(to_rows), table, a, b);
    }
};

inline int weighted_sum(const bk_lsh_weighted_sum& call) {
    const PairSums sums{call.of, call.queries, call.keys, call.weight_width, call.width, 1.0f, call.query_weights,
                        call.key_weights, nullptr, call.values, call.sums, nullptr};
    return add_groups(call.of, {}, call.queries, call.keys, sums);
}

struct Gradients {
    Sum of_values;
    PairSums of_both;

    int64_t bytes() const { return maximum(of_values.bytes(), of_both.bytes()); }
    void add(int64_t group, const int32_t* query_codes, const int32_t* key_codes, char* memory) const {
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

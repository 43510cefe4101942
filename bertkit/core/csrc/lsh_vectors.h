// Vectors of a level of instructions, which says how many floats, kLanes, it works on at a time, and rows of numbers in memory.
//
// Vectors are those of GCC and Clang, which turn them into the instructions of the level. Sums are 32-bit floats.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "bertkit.h"

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

/// Rows one after another, at equal distances.
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

}  // namespace
}  // namespace lsh
}  // namespace bertkit

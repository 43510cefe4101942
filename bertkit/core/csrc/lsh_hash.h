// Hash functions: the codes of vectors.
#pragma once

#include "lsh_vectors.h"
#include "memory.h"

namespace bertkit {
namespace lsh {
namespace {

inline bool keeps(const uint8_t* mask, int64_t row) { return mask == nullptr || mask[row] != 0; }
inline bool keeps_some(const uint8_t* mask, int64_t row, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (keeps(mask, row + i)) return true;
    }
    return false;
}

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

/// The buckets of a table.
inline int64_t capacity_of(const bk_lsh& of) { return int64_t(1) << of.code_bits; }

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
        const uint8_t* mask = mask_of_group(group);
        uint32_t all = 0;  // given codes are below a power of two where their bits together are
        for (int64_t row = 0; row < side.rows; row += kLanes) {
            const int64_t count = minimum(kLanes, side.rows - row);
            if (side.codes != nullptr) {
                all |= copy_codes(side.codes + (group * side.rows + row) * of.hashes, count, codes + row);
            } else if (keeps_some(mask, row, count)) {
                const Floats* found = hash_rows(group, row, count, memory);
                for (int64_t m = 0; m < of.hashes; ++m) std::memcpy(codes + m * pitch() + row, found + m, sizeof *found);
            }
        }
        for (int64_t row = 0; row < side.rows; ++row) {
            if (keeps(mask, row)) continue;
            for (int64_t m = 0; m < of.hashes; ++m) codes[m * pitch() + row] = int32_t(capacity_of(of));
        }
        return {all < uint32_t(capacity_of(of)) ? codes : nullptr, pitch()};
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

}  // namespace
}  // namespace lsh
}  // namespace bertkit

// I-BERT's arithmetic on vectors: bertkit/core/reference/int8.py says what each function computes, and where it rounds.
//
// Included behind a simd_*.h. Parameters that differ from column to column are read once for a few rows; the types of what is
// read end in -s.
#pragma once

#include <cstdint>

namespace bertkit {
namespace {

// -- rescaling ------------------------------------------------------------------------------------------------------
/// One multiplier and one right shift for each column.
struct Rescaling {
    int32_t* multiplier;
    int32_t* right_shift;
};

/// Those of kLanes columns.
struct Scales {
    Wide multiplier, half, right_shift;
};

inline Scales scales(Vector multiplier, Vector right_shift) {
    const Wide counts = widen_counts(right_shift);
    return {spread(multiplier), shift_left(broadcast_wide(1), add(counts, broadcast_wide(-1))), counts};
}

inline Scales scales(const Rescaling& rescaling, int64_t column) {
    return scales(load(rescaling.multiplier + column), load(rescaling.right_shift + column));
}

inline Wide rescale(Wide x, const Scales& by) { return shift_right(add(product(x, by.multiplier), by.half), by.right_shift); }
inline Wide rescale(Vector x, const Scales& by) { return rescale(spread(x), by); }

template <int kBits>
inline Wide saturate(Wide x) {
    constexpr int64_t kLargest = (int64_t(1) << (kBits - 1)) - 1;
    return maximum(minimum(x, broadcast_wide(kLargest)), broadcast_wide(-kLargest - 1));
}

constexpr int kStreamBits = 8, kEmbeddingBits = 16, kNormBits = 22;

// -- GELU -----------------------------------------------------------------------------------------------------------
struct Gelu {
    int32_t* clip;
    int64_t* one;
    int32_t* unit;
    int32_t* drop;
};

struct Gelus {
    Vector clip;
    Wide one, unit, drop;
};

inline Gelus gelus(const Gelu& gelu, int64_t column) {
    return {load(gelu.clip + column), load_wide(gelu.one + column), spread(load(gelu.unit + column)),
            widen_counts(load(gelu.drop + column))};
}

/// The result fits 32 bits, as the sum of polynomial and unit does.
inline Wide gelu(Vector x, const Gelus& by) {
    constexpr int kDroppedBits = 14;
    const Wide distance = spread(subtract(minimum(absolute(x), by.clip), by.clip));
    const Wide magnitude = add(product(distance, distance), by.one);
    // sign(0) would be 0, but then so is the product with x.
    const Wide polynomial = shift_right<kDroppedBits>(negated_where_negative(magnitude, x));
    return shift_right(product(spread(x), add(polynomial, by.unit)), by.drop);
}

// -- softmax --------------------------------------------------------------------------------------------------------
struct Softmax {
    int32_t drop, step, linear, one;  ///< as in the oracle
    uint32_t inverse_step;            ///< 2**32 / step, rounded up
    int32_t multiplier, right_shift;

    /// Whether quotients of up to kExpBits * step are exact by way of the inverse, and fit: true for what freezing makes.
    bool fits() const { return step >= 3 && int64_t(kExpBits) * step * step < int64_t(1) << 32 && 0 <= drop && drop <= 31; }

    void set_inverse() { inverse_step = uint32_t((int64_t(1) << 32) / step + 1); }

    static constexpr int32_t kExpBits = 30;
};

/// exp(x) of x <= 0 in 15 bits.
struct Exponential {
    int drop;
    Vector limit, step, linear, one, shift;
    Wide inverse_step, multiplier;

    explicit Exponential(const Softmax& by)
        : drop(by.drop),
          limit(broadcast(Softmax::kExpBits * by.step)),
          step(broadcast(by.step)),
          linear(broadcast(by.linear)),
          one(broadcast(by.one)),
          shift(broadcast(by.right_shift - 1)),
          inverse_step(spread(broadcast(int32_t(by.inverse_step)))),
          multiplier(spread(broadcast(by.multiplier))) {}

    Vector operator()(Vector x) const {
        constexpr int kLargestShift = 63, kLargest = (1 << 15) - 1;
        const Vector below = minimum(subtract(broadcast(0), shift_right(x, drop)), limit);
        const Vector halvings = multiply_high(below, inverse_step);
        const Vector rest = subtract(below, multiply(halvings, step));
        const Vector polynomial = subtract(one, multiply(rest, subtract(linear, rest)));
        // To round, the last bit is shifted out apart: that spares the half, which would differ from lane to lane.
        const Wide counts = widen_counts(minimum(add(halvings, shift), broadcast(kLargestShift - 1)));
        const Wide twice = shift_right(product(spread(polynomial), multiplier), counts);
        return shift_right(add(narrow(minimum(twice, broadcast_wide(2 * kLargest))), broadcast(1)), 1);
    }
};

/// A row of probabilities in 1/256. Scores become something else; up to the next multiple of kLanes there must be room.
inline void softmax(int32_t* scores, int64_t count, const Exponential& exponential, uint8_t* probabilities) {
    for (int64_t key = count; key % kLanes != 0; ++key) scores[key] = scores[0];
    Vector most = load(scores);
    for (int64_t key = kLanes; key < count; key += kLanes) most = maximum(most, load(scores + key));
    most = broadcast(largest(most));
    Vector sums = broadcast(0);
    for (int64_t key = 0; key < count; key += kLanes) {
        Vector exps = exponential(subtract(load(scores + key), most));
        store(scores + key, exps);
        if (key + kLanes > count) exps = first_lanes(exps, int(count - key));
        sums = add(sums, exps);
    }
    const int64_t sum = total(widen(sums)), quotient = (int64_t(1) << 32) / (sum > 1 ? sum : 1);
    const Wide factor = spread(broadcast(int32_t(uint32_t(quotient < UINT32_MAX ? quotient : UINT32_MAX))));
    for (int64_t key = 0; key < count; key += kLanes) {
        // exps * factor + 2**23 >> 24, with the last bit shifted out apart
        const Vector twice = multiply_high(shift_left<9>(load(scores + key)), factor);
        store_unsigned_bytes(probabilities + key, shift_right(add(twice, broadcast(1)), 1));
    }
}

// -- layer norm -----------------------------------------------------------------------------------------------------
struct Norm {
    int32_t* shift;
    Rescaling gain;
    int64_t* offset;
};

/// The largest integer whose square does not exceed x, by Newton's iteration from above.
inline int64_t integer_sqrt(int64_t x) {
    if (x == 0) return 0;
    const int bits = 64 - __builtin_clzll(uint64_t(x));
    int64_t root = int64_t(1) << ((bits + 1) / 2);
    for (int64_t better; (better = (root + x / root) >> 1) < root;) root = better;
    return root;
}

inline int64_t floor_divide(int64_t x, int64_t y) { return x / y - (x % y < 0); }

/// The mean of a row, rounded to the nearest integer, ties up. Beyond `width` there are zeros.
inline int64_t mean(const int32_t* row, int64_t width) {
    Wide sum = broadcast_wide(0);
    for (int64_t column = 0; column < width; column += kLanes) sum = add(sum, widen(load(row + column)));
    return floor_divide(2 * total(sum) + width, 2 * width);
}

/// 2**31 over the square root of the sum of the squares of centred numbers.
inline int64_t inverse_deviation(const int32_t* row, int64_t width, Vector middle, int shift) {
    Wide squares = broadcast_wide(0);
    for (int64_t column = 0; column < width; column += kLanes) {
        Vector root = shift_right(subtract(load(row + column), middle), shift);
        if (column + kLanes > width) root = first_lanes(root, int(width - column));
        squares = add(squares, product(spread(root), spread(root)));
    }
    const int64_t root = integer_sqrt(total(squares)), deviation = (root > 1 ? root : 1) << shift;
    const int64_t factor = (int64_t(1) << 31) / deviation;
    return factor < INT32_MAX ? factor : INT32_MAX;
}

/// A row of 22 bits becomes one of 8. Both go up to the next multiple of kLanes, where the gain is 0.
inline void layer_norm(const int32_t* row, int64_t width, const Norm& norm, uint8_t flip, int8_t* out) {
    int32_t shift;
    std::memcpy(&shift, norm.shift, sizeof shift);
    const Vector middle = broadcast(int32_t(mean(row, width)));
    const Wide factor = spread(broadcast(int32_t(inverse_deviation(row, width, middle, shift))));
    for (int64_t column = 0; column < width; column += kLanes) {
        // No centred number is twice the deviation or more, which has lost less than its last `shift` bits: 32 bits hold
        // what is normed, and there is nothing to saturate.
        const Wide centred = spread(subtract(load(row + column), middle));
        const Wide normed = shift_right<1>(product(centred, factor));
        const Wide scaled = add(product(normed, spread(load(norm.gain.multiplier + column))), load_wide(norm.offset + column));
        const Wide result = shift_right(scaled, widen_counts(load(norm.gain.right_shift + column)));
        store_bytes(out + column, narrow(saturate<kStreamBits>(result)), flip);
    }
}

}  // namespace
}  // namespace bertkit

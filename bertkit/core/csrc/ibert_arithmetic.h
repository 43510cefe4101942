// I-BERT's arithmetic on vectors: bertkit/core/reference/int8.py says what each function computes, and where it rounds.
//
// Included behind a simd_*.h. Parameters that differ from column to column are read once for a few rows; the types of what is
// read end in -s.
#pragma once

#include <cstdint>
#include <cstring>

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

constexpr int kEmbeddingBits = 16, kNormBits = 22;

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
/// Constants as in the oracle.
struct Softmax {
    int32_t drop, step, linear, one, multiplier, right_shift;

    static constexpr int32_t kExpBits = 30, kLargestExp = (1 << 15) - 1;

    /// Whether they are what freezing makes; quotients of numbers up to kExpBits * step are then exact by way of 2**32 / step.
    bool fits() const {
        return step >= 3 && int64_t(kExpBits) * step * step < int64_t(1) << 32 && 0 <= drop && drop <= 31 && multiplier >= 0 &&
               1 <= right_shift && right_shift <= 62;
    }
};

/// exp(x) of x <= 0 in 15 bits. Numbers stay negative here: that spares their negation.
class Exponential {
public:
    explicit Exponential(const Softmax& by)
        : least_(broadcast(-Softmax::kExpBits * by.step)),
          drop_(broadcast(by.drop)),
          step_(broadcast(by.step)),
          linear_(broadcast(by.linear)),
          one_(broadcast(by.one)),
          right_shift_(broadcast(by.right_shift)),
          minus_inverse_step_(broadcast_wide(-((int64_t(1) << 32) / by.step + 1))),
          multiplier_(spread(broadcast(by.multiplier))),
          is_coarse_(by.right_shift <= 32) {}

    Vector operator()(Vector x) const {
        const Vector dropped = maximum(shift_right(x, drop_), least_);
        const Vector halvings = high(product(spread(dropped), minus_inverse_step_));
        const Vector rest = add(dropped, multiply_short(halvings, step_));
        const Vector polynomial = add(one_, multiply(rest, add(linear_, rest)));
        const Wide scaled = product(spread(polynomial), multiplier_);
        // The last bit is shifted out apart, to round.
        const Vector twice = is_coarse_ ? shift_coarse(scaled, halvings) : shift_fine(scaled, halvings);
        return shift_right<1>(add(minimum(twice, broadcast(2 * Softmax::kLargestExp)), broadcast(1)));
    }

private:
    // By right_shift - 1 + halvings, 32 at least.
    Vector shift_fine(Wide scaled, Vector halvings) const {
        return shift_right(high(scaled), add(halvings, subtract(right_shift_, broadcast(33))));
    }

    // By less, so that the result may need more than 32 bits.
    Vector shift_coarse(Wide scaled, Vector halvings) const {
        const Wide twice = shift_right(scaled, widen_counts(add(halvings, subtract(right_shift_, broadcast(1)))));
        return narrow(minimum(twice, broadcast_wide(2 * Softmax::kLargestExp)));
    }

    Vector least_, drop_, step_, linear_, one_, right_shift_;
    Wide minus_inverse_step_, multiplier_;
    bool is_coarse_;
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
    const Wide factor = broadcast_wide(quotient < UINT32_MAX ? quotient : UINT32_MAX);
    for (int64_t key = 0; key < count; key += kLanes) {
        // exps * factor + 2**23 >> 24, with the last bit shifted out apart
        const Vector twice = high(unsigned_product(spread(shift_left<9>(load(scores + key))), factor));
        store_unsigned_bytes(probabilities + key, shift_right<1>(add(twice, broadcast(1))));
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
    constexpr int64_t kBlock = 512 * kLanes;  // so many numbers of 22 bits add up in 32
    int64_t sum = 0;
    for (int64_t begin = 0; begin < width; begin += kBlock) {
        const int64_t end = begin + kBlock < width ? begin + kBlock : width;
        Vector sums = broadcast(0);
        for (int64_t column = begin; column < end; column += kLanes) sums = add(sums, load(row + column));
        sum += total(widen(sums));
    }
    return floor_divide(2 * sum + width, 2 * width);
}

/// 2**31 over the square root of the sum of the squares of centred numbers.
inline int64_t inverse_deviation(const int32_t* row, int64_t width, Vector middle, int shift) {
    Wide squares = broadcast_wide(0);
    for (int64_t column = 0; column < width; column += kLanes) {
        Vector root = shift_right(subtract(load(row + column), middle), broadcast(shift));
        if (column + kLanes > width) root = first_lanes(root, int(width - column));
        squares = add(squares, product(spread(root), spread(root)));
    }
    const int64_t root = integer_sqrt(total(squares)), deviation = (root > 1 ? root : 1) << shift;
    const int64_t factor = (int64_t(1) << 31) / deviation;
    return factor < INT32_MAX ? factor : INT32_MAX;
}

/// Rows of 22 bits become rows of 8. Both go up to the next multiple of kLanes, where the gain is 0.
inline void layer_norm(const int32_t* in, int64_t in_stride, int64_t rows, int64_t width, const Norm& norm, uint8_t flip,
                       int8_t* out, int64_t out_stride) {
    constexpr int64_t kMostRows = 4;  // which share what is read of the columns, and wait for their roots at once
    int32_t shift;
    std::memcpy(&shift, norm.shift, sizeof shift);
    for (int64_t first = 0; first < rows; first += kMostRows) {
        const int64_t count = rows - first < kMostRows ? rows - first : kMostRows;
        Vector middles[kMostRows];
        Wide factors[kMostRows];
        for (int64_t i = 0; i < count; ++i) {
            const int32_t* row = in + (first + i) * in_stride;
            middles[i] = broadcast(int32_t(mean(row, width)));
            factors[i] = broadcast_wide(inverse_deviation(row, width, middles[i], shift));
        }
        for (int64_t column = 0; column < width; column += kLanes) {
            const Wide multiplier = spread(load(norm.gain.multiplier + column)), offset = load_wide(norm.offset + column),
                       right_shift = widen_counts(load(norm.gain.right_shift + column));
            for (int64_t i = 0; i < count; ++i) {
                // No centred number is twice the deviation or more, which has lost less than its last `shift` bits: 32
                // bits hold what is normed, and there is nothing to saturate.
                const Vector centred = subtract(load(in + (first + i) * in_stride + column), middles[i]);
                const Wide normed = shift_right<1>(product(spread(centred), factors[i]));
                const Wide result = shift_right(add(product(normed, multiplier), offset), right_shift);
                store_bytes(out + (first + i) * out_stride + column, result, flip);
            }
        }
    }
}

}  // namespace
}  // namespace bertkit

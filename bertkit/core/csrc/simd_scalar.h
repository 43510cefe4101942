// One integer at a time, for any CPU; and what the functions of every simd_*.h mean.
//
// A Vector holds kLanes integers of 32 bits. A Wide holds as many of 64 bits, those of the even and of the odd lanes apart,
// because that is how x86 multiplies them. Pointers need no alignment. There is no floating point here, nor anywhere above.
#pragma once

#include <cstdint>
#include <cstring>

namespace bertkit {
namespace {

constexpr int kLanes = 1;

struct Vector {
    int32_t lane;
};

struct Wide {
    int64_t lane;
};

inline Vector broadcast(int32_t x) { return {x}; }
inline Wide broadcast_wide(int64_t x) { return {x}; }

// -- memory ---------------------------------------------------------------------------------------------------------
inline Vector load(const int32_t* from) {
    Vector x;
    std::memcpy(&x.lane, from, sizeof x.lane);
    return x;
}
/// Signed bytes, XOR flip.
inline Vector load_bytes(const int8_t* from, uint8_t flip) { return {int8_t(*from ^ flip)}; }
/// As many bytes as `count`, 1 ... kLanes, and 0 in the other lanes; no others are read.
inline Vector load_first_bytes(const int8_t* from, int) { return {*from}; }
inline Wide load_wide(const int64_t* from) {
    Wide x;
    std::memcpy(&x.lane, from, sizeof x.lane);
    return x;
}
inline void store(int32_t* to, Vector x) { std::memcpy(to, &x.lane, sizeof x.lane); }
/// Saturated to [-128, 127], then XOR flip.
inline void store_bytes(int8_t* to, Vector x, uint8_t flip) {
    const int32_t byte = x.lane < -128 ? -128 : x.lane > 127 ? 127 : x.lane;
    *to = int8_t(byte ^ flip);
}
/// The same for lanes of 64 bits.
inline void store_bytes(int8_t* to, Wide x, uint8_t flip) {
    const int64_t byte = x.lane < -128 ? -128 : x.lane > 127 ? 127 : x.lane;
    *to = int8_t(byte ^ flip);
}
/// Lanes of 32 bits: the first `count`, 1 ... kLanes, and nothing else is written.
inline void store_first_bytes(int8_t* to, Vector x, uint8_t flip, int) { store_bytes(to, x, flip); }
/// Lanes that are not negative, saturated to 255.
inline void store_unsigned_bytes(uint8_t* to, Vector x) { *to = uint8_t(x.lane > 255 ? 255 : x.lane); }

// -- lanes of 32 bits -----------------------------------------------------------------------------------------------
/// 0 in all lanes but the first `count`, 1 ... kLanes.
inline Vector first_lanes(Vector x, int) { return x; }
inline Vector add(Vector x, Vector y) { return {int32_t(uint32_t(x.lane) + uint32_t(y.lane))}; }
inline Vector subtract(Vector x, Vector y) { return {int32_t(uint32_t(x.lane) - uint32_t(y.lane))}; }
/// The low 32 bits of the products.
inline Vector multiply(Vector x, Vector y) { return {int32_t(uint32_t(x.lane) * uint32_t(y.lane))}; }
inline Vector minimum(Vector x, Vector y) { return x.lane < y.lane ? x : y; }
inline Vector maximum(Vector x, Vector y) { return x.lane < y.lane ? y : x; }
inline Vector absolute(Vector x) { return {x.lane < 0 ? int32_t(0u - uint32_t(x.lane)) : x.lane}; }
template <int kCount>
inline Vector shift_left(Vector x) {
    return {int32_t(uint32_t(x.lane) << kCount)};
}
/// Products of numbers from 0 to 2**15 - 1.
inline Vector multiply_short(Vector x, Vector y) { return multiply(x, y); }
/// Arithmetic, like every shift to the right; by 31 where counts are larger.
inline Vector shift_right(Vector x, Vector counts) { return {x.lane >> (counts.lane < 31 ? counts.lane : 31)}; }
template <int kCount>
inline Vector shift_right(Vector x) {
    return {x.lane >> kCount};
}
inline int32_t largest(Vector x) { return x.lane; }

// -- lanes of 64 bits -----------------------------------------------------------------------------------------------
/// Lanes whose low halves are those of x, and whose high halves may be anything: what `product` reads.
inline Wide spread(Vector x) { return {x.lane}; }
/// The same numbers in 64 bits.
inline Wide widen(Vector x) { return {x.lane}; }
/// The same for numbers that are not negative: counts of shifts.
inline Wide widen_counts(Vector x) { return {x.lane}; }
/// The low halves.
inline Vector narrow(Wide x) { return {int32_t(x.lane)}; }
/// The high halves.
inline Vector high(Wide x) { return {int32_t(x.lane >> 32)}; }
/// Products of the low halves, with their signs.
inline Wide product(Wide x, Wide y) { return {int64_t(int32_t(x.lane)) * int32_t(y.lane)}; }
/// Products of the low halves, without signs.
inline Wide unsigned_product(Wide x, Wide y) { return {int64_t(uint64_t(uint32_t(x.lane)) * uint32_t(y.lane))}; }
inline Wide add(Wide x, Wide y) { return {x.lane + y.lane}; }
inline Wide minimum(Wide x, Wide y) { return x.lane < y.lane ? x : y; }
inline Wide maximum(Wide x, Wide y) { return x.lane < y.lane ? y : x; }
inline Wide shift_left(Wide x, Wide counts) { return {x.lane << counts.lane}; }
inline Wide shift_right(Wide x, Wide counts) { return {x.lane >> counts.lane}; }
template <int kCount>
inline Wide shift_right(Wide x) {
    return {x.lane >> kCount};
}
inline Wide negated_where_negative(Wide x, Vector sign) { return {sign.lane < 0 ? -x.lane : x.lane}; }
inline int64_t total(Wide x) { return x.lane; }

}  // namespace
}  // namespace bertkit

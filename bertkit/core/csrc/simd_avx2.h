// Eight integers at a time, with AVX2. What the functions mean is written in simd_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bertkit {
namespace {

constexpr int kLanes = 8;

using Vector = __m256i;

struct Wide {
    __m256i even, odd;
};

// Which of two vectors a blend takes the odd lanes of 32 bits from: the second.
constexpr int kOddOfSecond = 0xaa;

// What lanes of 32 bits a shuffle takes: every even or every odd one twice.
constexpr int kEvenTwice = 0xa0, kOddTwice = 0xf5;

inline Vector broadcast(int32_t x) { return _mm256_set1_epi32(x); }
inline Wide broadcast_wide(int64_t x) { return {_mm256_set1_epi64x(x), _mm256_set1_epi64x(x)}; }

// -- memory ---------------------------------------------------------------------------------------------------------
inline Vector load(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Vector load_bytes(const int8_t* from, uint8_t flip) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtepi8_epi32(_mm_xor_si128(bytes, _mm_set1_epi8(char(flip))));
}
inline Vector load_first_bytes(const int8_t* from, int count) {
    uint64_t bytes = 0;
    for (int lane = 0; lane < count; ++lane) bytes |= uint64_t(uint8_t(from[lane])) << 8 * lane;
    return _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(int64_t(bytes)));
}
inline Wide load_wide(const int64_t* from) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 4));
    constexpr int kMiddleSwapped = 0xd8;
    return {_mm256_permute4x64_epi64(_mm256_unpacklo_epi64(low, high), kMiddleSwapped),
            _mm256_permute4x64_epi64(_mm256_unpackhi_epi64(low, high), kMiddleSwapped)};
}
inline void store(int32_t* to, Vector x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }
inline __m128i words(Vector x) { return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)); }
inline __m128i flipped_bytes(Vector x, uint8_t flip) {
    return _mm_xor_si128(_mm_packs_epi16(words(x), _mm_setzero_si128()), _mm_set1_epi8(char(flip)));
}
inline void store_bytes(int8_t* to, Vector x, uint8_t flip) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), flipped_bytes(x, flip));
}
inline void store_first_bytes(int8_t* to, Vector x, uint8_t flip, int count) {
    const int64_t bytes = _mm_cvtsi128_si64(flipped_bytes(x, flip));
    for (int lane = 0; lane < count; ++lane) to[lane] = int8_t(bytes >> 8 * lane);
}
inline void store_unsigned_bytes(uint8_t* to, Vector x) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words(x), _mm_setzero_si128()));
}

// -- lanes of 32 bits -----------------------------------------------------------------------------------------------
inline Vector first_lanes(Vector x, int count) {
    return _mm256_and_si256(x, _mm256_cmpgt_epi32(broadcast(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
}
inline Vector add(Vector x, Vector y) { return _mm256_add_epi32(x, y); }
inline Vector subtract(Vector x, Vector y) { return _mm256_sub_epi32(x, y); }
inline Vector multiply(Vector x, Vector y) { return _mm256_mullo_epi32(x, y); }
inline Vector minimum(Vector x, Vector y) { return _mm256_min_epi32(x, y); }
inline Vector maximum(Vector x, Vector y) { return _mm256_max_epi32(x, y); }
inline Vector absolute(Vector x) { return _mm256_abs_epi32(x); }
template <int kCount>
inline Vector shift_left(Vector x) {
    return _mm256_slli_epi32(x, kCount);
}
inline Vector multiply_short(Vector x, Vector y) { return _mm256_madd_epi16(x, y); }
inline Vector shift_right(Vector x, Vector counts) { return _mm256_srav_epi32(x, counts); }
template <int kCount>
inline Vector shift_right(Vector x) {
    return _mm256_srai_epi32(x, kCount);
}
inline int32_t largest(Vector x) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

// -- lanes of 64 bits -----------------------------------------------------------------------------------------------
// AVX2 shifts 64 bits arithmetically in no way, and compares them in one.
inline __m256i negative(__m256i x) { return _mm256_cmpgt_epi64(_mm256_setzero_si256(), x); }

inline Wide spread(Vector x) { return {x, _mm256_srli_epi64(x, 32)}; }
inline Wide widen(Vector x) {
    const __m256i sign = _mm256_srai_epi32(x, 31);
    return {_mm256_blend_epi32(x, _mm256_shuffle_epi32(sign, kEvenTwice), kOddOfSecond),
            _mm256_blend_epi32(_mm256_shuffle_epi32(x, kOddTwice), sign, kOddOfSecond)};
}
inline Wide widen_counts(Vector x) {
    return {_mm256_blend_epi32(x, _mm256_setzero_si256(), kOddOfSecond), _mm256_srli_epi64(x, 32)};
}
inline Vector narrow(Wide x) {
    return _mm256_blend_epi32(x.even, _mm256_shuffle_epi32(x.odd, kEvenTwice), kOddOfSecond);
}
inline Vector high(Wide x) { return _mm256_blend_epi32(_mm256_shuffle_epi32(x.even, kOddTwice), x.odd, kOddOfSecond); }
inline Wide product(Wide x, Wide y) { return {_mm256_mul_epi32(x.even, y.even), _mm256_mul_epi32(x.odd, y.odd)}; }
inline Wide unsigned_product(Wide x, Wide y) { return {_mm256_mul_epu32(x.even, y.even), _mm256_mul_epu32(x.odd, y.odd)}; }
inline Wide add(Wide x, Wide y) { return {_mm256_add_epi64(x.even, y.even), _mm256_add_epi64(x.odd, y.odd)}; }
inline __m256i minimum_64(__m256i x, __m256i y) { return _mm256_blendv_epi8(x, y, _mm256_cmpgt_epi64(x, y)); }
inline __m256i maximum_64(__m256i x, __m256i y) { return _mm256_blendv_epi8(y, x, _mm256_cmpgt_epi64(x, y)); }
inline Wide minimum(Wide x, Wide y) { return {minimum_64(x.even, y.even), minimum_64(x.odd, y.odd)}; }
inline Wide maximum(Wide x, Wide y) { return {maximum_64(x.even, y.even), maximum_64(x.odd, y.odd)}; }
inline void store_bytes(int8_t* to, Wide x, uint8_t flip) {
    store_bytes(to, narrow(maximum(minimum(x, broadcast_wide(127)), broadcast_wide(-128))), flip);
}
inline Wide shift_left(Wide x, Wide counts) {
    return {_mm256_sllv_epi64(x.even, counts.even), _mm256_sllv_epi64(x.odd, counts.odd)};
}
// A negative x is shifted as ~x, and turned back.
inline __m256i shift_right_64(__m256i x, __m256i counts) {
    const __m256i flip = negative(x);
    return _mm256_xor_si256(_mm256_srlv_epi64(_mm256_xor_si256(x, flip), counts), flip);
}
inline Wide shift_right(Wide x, Wide counts) {
    return {shift_right_64(x.even, counts.even), shift_right_64(x.odd, counts.odd)};
}
template <int kCount>
inline __m256i shift_right_64(__m256i x) {
    static_assert(kCount < 32, "the high halves are shifted by themselves");
    return _mm256_blend_epi32(_mm256_srli_epi64(x, kCount), _mm256_srai_epi32(x, kCount), kOddOfSecond);
}
template <int kCount>
inline Wide shift_right(Wide x) {
    return {shift_right_64<kCount>(x.even), shift_right_64<kCount>(x.odd)};
}
inline __m256i negated_64(__m256i x, __m256i flip) { return _mm256_sub_epi64(_mm256_xor_si256(x, flip), flip); }
inline Wide negated_where_negative(Wide x, Vector sign) {
    const __m256i flip = _mm256_srai_epi32(sign, 31);
    return {negated_64(x.even, _mm256_shuffle_epi32(flip, kEvenTwice)),
            negated_64(x.odd, _mm256_shuffle_epi32(flip, kOddTwice))};
}
inline int64_t total(Wide x) {
    const __m256i sum = _mm256_add_epi64(x.even, x.odd);
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return _mm_cvtsi128_si64(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half)));
}

}  // namespace
}  // namespace bertkit

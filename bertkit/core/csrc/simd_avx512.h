// Sixteen integers at a time, with AVX-512. What the functions mean is written in simd_scalar.h.
#pragma once

// GCC 12 warns of its own headers: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593. Clang knows no such warning.
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#ifndef __clang__
#pragma GCC diagnostic pop
#endif

#include <cstdint>

namespace bertkit {
namespace {

constexpr int kLanes = 16;

using Vector = __m512i;

struct Wide {
    __m512i even, odd;
};

inline Vector broadcast(int32_t x) { return _mm512_set1_epi32(x); }
inline Wide broadcast_wide(int64_t x) { return {_mm512_set1_epi64(x), _mm512_set1_epi64(x)}; }

// -- memory ---------------------------------------------------------------------------------------------------------
inline __mmask16 mask_of_first(int count) { return __mmask16((1u << count) - 1); }  // 1 ... 16

inline Vector load(const int32_t* from) { return _mm512_loadu_si512(from); }
inline Vector load_bytes(const int8_t* from, uint8_t flip) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_cvtepi8_epi32(_mm_xor_si128(bytes, _mm_set1_epi8(char(flip))));
}
inline Vector load_first_bytes(const int8_t* from, int count) {
    return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask_of_first(count), from));
}
inline Wide load_wide(const int64_t* from) {
    const __m512i low = _mm512_loadu_si512(from), high = _mm512_loadu_si512(from + 8);
    return {_mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), high),
            _mm512_permutex2var_epi64(low, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), high)};
}
inline void store(int32_t* to, Vector x) { _mm512_storeu_si512(to, x); }
inline void store_bytes(int8_t* to, Vector x, uint8_t flip) {
    const __m128i bytes = _mm_xor_si128(_mm512_cvtsepi32_epi8(x), _mm_set1_epi8(char(flip)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
inline void store_bytes(int8_t* to, Wide x, uint8_t flip) {
    const __m128i bytes = _mm_unpacklo_epi8(_mm512_cvtsepi64_epi8(x.even), _mm512_cvtsepi64_epi8(x.odd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_xor_si128(bytes, _mm_set1_epi8(char(flip))));
}
inline void store_first_bytes(int8_t* to, Vector x, uint8_t flip, int count) {
    const __m128i bytes = _mm_xor_si128(_mm512_cvtsepi32_epi8(x), _mm_set1_epi8(char(flip)));
    _mm_mask_storeu_epi8(to, mask_of_first(count), bytes);
}
inline void store_unsigned_bytes(uint8_t* to, Vector x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(x));
}

// -- lanes of 32 bits -----------------------------------------------------------------------------------------------
inline Vector first_lanes(Vector x, int count) { return _mm512_maskz_mov_epi32(mask_of_first(count), x); }
inline Vector add(Vector x, Vector y) { return _mm512_add_epi32(x, y); }
inline Vector subtract(Vector x, Vector y) { return _mm512_sub_epi32(x, y); }
inline Vector multiply(Vector x, Vector y) { return _mm512_mullo_epi32(x, y); }
inline Vector minimum(Vector x, Vector y) { return _mm512_min_epi32(x, y); }
inline Vector maximum(Vector x, Vector y) { return _mm512_max_epi32(x, y); }
inline Vector absolute(Vector x) { return _mm512_abs_epi32(x); }
template <int kCount>
inline Vector shift_left(Vector x) {
    return _mm512_slli_epi32(x, kCount);
}
inline Vector multiply_short(Vector x, Vector y) { return _mm512_madd_epi16(x, y); }
inline Vector shift_right(Vector x, Vector counts) { return _mm512_srav_epi32(x, counts); }
template <int kCount>
inline Vector shift_right(Vector x) {
    return _mm512_srai_epi32(x, kCount);
}
inline int32_t largest(Vector x) { return _mm512_reduce_max_epi32(x); }

// -- lanes of 64 bits -----------------------------------------------------------------------------------------------
// A shuffle, and no shift: shifts are for one of two ports alone, and there are more of them.
inline Wide spread(Vector x) { return {x, _mm512_shuffle_epi32(x, _MM_PERM_DDBB)}; }
inline Wide widen(Vector x) {
    return {_mm512_srai_epi64(_mm512_slli_epi64(x, 32), 32), _mm512_srai_epi64(x, 32)};
}
inline Wide widen_counts(Vector x) { return {_mm512_maskz_mov_epi32(0x5555, x), _mm512_srli_epi64(x, 32)}; }
inline Vector narrow(Wide x) { return _mm512_mask_shuffle_epi32(x.even, 0xaaaa, x.odd, _MM_PERM_CCAA); }
inline Vector high(Wide x) { return _mm512_mask_shuffle_epi32(x.odd, 0x5555, x.even, _MM_PERM_DDBB); }
inline Wide product(Wide x, Wide y) { return {_mm512_mul_epi32(x.even, y.even), _mm512_mul_epi32(x.odd, y.odd)}; }
inline Wide unsigned_product(Wide x, Wide y) { return {_mm512_mul_epu32(x.even, y.even), _mm512_mul_epu32(x.odd, y.odd)}; }
inline Wide add(Wide x, Wide y) { return {_mm512_add_epi64(x.even, y.even), _mm512_add_epi64(x.odd, y.odd)}; }
inline Wide minimum(Wide x, Wide y) { return {_mm512_min_epi64(x.even, y.even), _mm512_min_epi64(x.odd, y.odd)}; }
inline Wide maximum(Wide x, Wide y) { return {_mm512_max_epi64(x.even, y.even), _mm512_max_epi64(x.odd, y.odd)}; }
inline Wide shift_left(Wide x, Wide counts) {
    return {_mm512_sllv_epi64(x.even, counts.even), _mm512_sllv_epi64(x.odd, counts.odd)};
}
inline Wide shift_right(Wide x, Wide counts) {
    return {_mm512_srav_epi64(x.even, counts.even), _mm512_srav_epi64(x.odd, counts.odd)};
}
template <int kCount>
inline Wide shift_right(Wide x) {
    return {_mm512_srai_epi64(x.even, kCount), _mm512_srai_epi64(x.odd, kCount)};
}
inline Wide negated_where_negative(Wide x, Vector sign) {
    const __m512i zero = _mm512_setzero_si512();
    const __mmask8 even = _mm512_test_epi64_mask(sign, _mm512_set1_epi64(int64_t(1) << 31));
    const __mmask8 odd = _mm512_test_epi64_mask(sign, _mm512_set1_epi64(INT64_MIN));
    return {_mm512_mask_sub_epi64(x.even, even, zero, x.even), _mm512_mask_sub_epi64(x.odd, odd, zero, x.odd)};
}
inline int64_t total(Wide x) { return _mm512_reduce_add_epi64(_mm512_add_epi64(x.even, x.odd)); }

}  // namespace
}  // namespace bertkit

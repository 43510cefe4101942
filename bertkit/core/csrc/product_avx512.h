// Products of 8 bit integers with AVX512-VNNI. What the functions mean is written in product_scalar.h.
#pragma once

#include "simd_avx512.h"

namespace bertkit {
namespace {

constexpr int kBlockRows = 14;  // 28 sums, two vectors of weights and one factor in 32 registers

inline Vector dot(Vector sums, Vector rows, Vector columns) { return _mm512_dpbusd_epi32(sums, rows, columns); }

}  // namespace
}  // namespace bertkit

#include "product_vnni.h"

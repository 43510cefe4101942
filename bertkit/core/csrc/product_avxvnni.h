// Products of 8 bit integers with AVX-VNNI, which CPUs without AVX-512 have. What the functions mean is written in
// product_scalar.h.
#pragma once

#include "simd_avx2.h"

namespace bertkit {
namespace {

constexpr int kBlockRows = 6;  // 12 sums, two vectors of weights and one factor in 16 registers

inline Vector dot(Vector sums, Vector rows, Vector columns) { return _mm256_dpbusd_avx_epi32(sums, rows, columns); }

}  // namespace
}  // namespace bertkit

#include "product_vnni.h"

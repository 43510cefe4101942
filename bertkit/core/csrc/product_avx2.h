// Products of 8 bit integers with AVX2. What the functions mean is written in product_scalar.h.
//
// VPMADDWD multiplies pairs of 16 bits, so that nothing can saturate, whatever the bytes are. VPMADDUBSW takes twice as many
// bytes, but saturates unless signs are moved about first, and its sums must be widened: it is no faster. Rows are widened
// once for a panel. A panel is the start of its columns, then for each half of 16 columns, for every two of the depth, two
// bytes of each column.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "product.h"
#include "simd_avx2.h"

namespace bertkit {
namespace {

struct Product {
    static constexpr int kRows = 24;
    static constexpr int kRowStep = 1;
    static constexpr int kRowsPerRead = 24;
    static constexpr int kColumns = 32;
    static constexpr int kDepthStep = 16;
    static constexpr uint8_t kFlip = 0;

    static void begin() {}
    static void end() {}

    static int64_t panel_bytes(int64_t depth) { return kStartBytes + kHalves * half_bytes(depth); }

    static void pack_rows(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, const int32_t* start,
                          uint8_t /* 0, as kFlip is */, char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        if (start != nullptr) std::memcpy(panel, start, std::size_t(columns) * sizeof *start);
        for (int64_t column = 0; column < columns; ++column) {
            char* out = column_of(panel, column, depth);
            for (int64_t k = 0; k < depth; ++k) out[k / 2 * kStepBytes + k % 2] = char(source[column * stride + k]);
        }
    }

    static void pack_columns(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, uint8_t /* as above */,
                             char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        for (int64_t column = 0; column < columns; ++column) {
            char* out = column_of(panel, column, depth);
            for (int64_t k = 0; k < depth; ++k) out[k / 2 * kStepBytes + k % 2] = char(source[k * stride + column]);
        }
    }

    template <Bytes kBytes, typename Beside = Nothing>
    static void multiply(const int8_t* a, int64_t stride, int64_t rows, const char* panel, int64_t depth, int32_t* out,
                         int64_t out_stride, Ahead ahead, const Beside& beside = {}) {
        beside(0, 1);
        const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
        for (int64_t line = 0; line < ahead.size; line += 64) _mm_prefetch(ahead.bytes + line, _MM_HINT_T1);
        for (int64_t i = 0; i < blocks; ++i) {
            const int64_t row = rows * i / blocks, count = rows * (i + 1) / blocks - row;
            block_of<kBytes, kBlockRows>(count, a + row * stride, stride, panel, depth, out + row * out_stride, out_stride);
        }
    }

private:
    // Six rows of two vectors leave room for what they are made of in 16 registers.
    static constexpr int kBlockRows = 6, kHalves = 2, kHalfColumns = kColumns / kHalves;
    static constexpr int64_t kStartBytes = kColumns * 4, kStepBytes = kHalfColumns * 2;
    // So much of the depth at a time that the widened rows stay in the first cache.
    static constexpr int64_t kWideDepth = 1024;

    // block<count>
    template <Bytes kBytes, int kCount, typename... Arguments>
    static void block_of(int64_t count, Arguments... arguments) {
        if constexpr (kCount > 1) {
            if (count < kCount) return block_of<kBytes, kCount - 1>(count, arguments...);
        }
        block<kBytes, kCount>(arguments...);
    }

    template <Bytes kBytes, int kCount>
    static void block(const int8_t* a, int64_t stride, const char* panel, int64_t depth, int32_t* out, int64_t out_stride) {
        alignas(32) int16_t wide[kCount][kWideDepth];
        for (int row = 0; row < kCount; ++row) std::memcpy(out + row * out_stride, panel, kStartBytes);
        for (int64_t first = 0; first < depth; first += kWideDepth) {
            const int64_t here = depth - first < kWideDepth ? depth - first : kWideDepth;
            for (int row = 0; row < kCount; ++row) {
                const int8_t* from = a + row * stride + first;
                for (int64_t k = 0; k < here; k += 16) {
                    _mm256_store_si256(reinterpret_cast<__m256i*>(wide[row] + k), widened<kBytes>(from + k));
                }
            }
            for (int half = 0; half < kHalves; ++half) {
                const char* weights = panel + kStartBytes + half * half_bytes(depth) + first / 2 * kStepBytes;
                add_products(wide, weights, (here + 1) / 2, out + half * kHalfColumns, out_stride);
            }
        }
    }

    // out += wide * weights. The sums stay in registers from the first to the last step, so everything has to be unrolled.
    template <int kCount>
    static void add_products(const int16_t (&wide)[kCount][kWideDepth], const char* weights, int64_t steps, int32_t* out,
                             int64_t out_stride) {
        __m256i left[kCount], right[kCount];
#pragma GCC unroll 6
        for (int row = 0; row < kCount; ++row) {
            left[row] = load(out + row * out_stride);
            right[row] = load(out + row * out_stride + 8);
        }
        for (int64_t step = 0; step < steps; ++step, weights += kStepBytes) {
            const __m256i left_weights = widened<Bytes::kSigned>(weights);
            const __m256i right_weights = widened<Bytes::kSigned>(weights + 16);
#pragma GCC unroll 6
            for (int row = 0; row < kCount; ++row) {
                int32_t pair;
                std::memcpy(&pair, &wide[row][step * 2], sizeof pair);
                const __m256i factors = _mm256_set1_epi32(pair);
                left[row] = _mm256_add_epi32(left[row], _mm256_madd_epi16(factors, left_weights));
                right[row] = _mm256_add_epi32(right[row], _mm256_madd_epi16(factors, right_weights));
                // All registers are in use. Without this, GCC reads the factors of later rows first and has none left for sums.
                __asm__("" : "+x"(left[row]), "+x"(right[row]));
            }
        }
#pragma GCC unroll 6
        for (int row = 0; row < kCount; ++row) {
            store(out + row * out_stride, left[row]);
            store(out + row * out_stride + 8, right[row]);
        }
    }

    template <Bytes kBytes>
    static __m256i widened(const void* from) {
        const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(from));
        return kBytes == Bytes::kSigned ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
    }

    static int64_t half_bytes(int64_t depth) { return (depth + 1) / 2 * kStepBytes; }

    // Where the first byte of a column is.
    static char* column_of(char* panel, int64_t column, int64_t depth) {
        return panel + kStartBytes + column / kHalfColumns * half_bytes(depth) + column % kHalfColumns * 2;
    }
};

}  // namespace
}  // namespace bertkit

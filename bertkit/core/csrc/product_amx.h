// Products of 8 bit integers with AMX tiles. What the functions mean is written in product_scalar.h.
//
// A tile is 16 rows of 64 bytes. A call multiplies two tiles of rows with two of columns, so that of eight tiles four hold
// sums and each tile that is read serves two products. A panel is the start of its 32 columns, then for every 64 of the depth
// two tiles of 16 columns, whose row k holds the bytes 4k ... 4k + 3 of each column.
//
// The tiles keep their shape where there are fewer rows: those below are read and computed for nothing, and written where
// nobody looks. Another shape would save no read of the panel, and every change of it empties all tiles.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "product.h"
#include "tiles.h"

namespace bertkit {
namespace {

struct Product {
    static constexpr int kRows = 2 * kTileRows;
    static constexpr int kRowStep = kTileRows;
    static constexpr int kRowsPerRead = 256;
    static constexpr int kColumns = 2 * kTileRows;
    static constexpr int kDepthStep = kTileBytes;
    static constexpr uint8_t kFlip = 0;

    static void begin() { tiles_begin(); }
    static void end() { tiles_end(); }

    static int64_t panel_bytes(int64_t depth) { return kStartBytes + steps(depth) * kStepBytes; }

    static void pack_rows(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, const int32_t* start,
                          uint8_t /* 0, as kFlip is */, char* panel) {
        pack_start(start, columns, panel);
        for (int64_t step = 0; step < steps(depth); ++step) {
            const __mmask64 bytes = mask_of_first(depth - step * kTileBytes);
            for (int half = 0; half < 2; ++half) {
                __m512i rows[kTileRows];
                for (int row = 0; row < kTileRows; ++row) {
                    const int64_t column = half * kTileRows + row;
                    rows[row] = _mm512_maskz_loadu_epi8(column < columns ? bytes : 0,
                                                        source + column * stride + step * kTileBytes);
                }
                transpose(rows);
                char* tile = panel + kStartBytes + step * kStepBytes + half * kHalfBytes;
                for (int row = 0; row < kTileRows; ++row) _mm512_storeu_si512(tile + row * kTileBytes, rows[row]);
            }
        }
    }

    static void pack_columns(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, uint8_t /* as above */,
                             char* panel) {
        pack_start(nullptr, columns, panel);
        for (int64_t k = 0; k < steps(depth) * kTileBytes; k += 4) {
            char* tile = panel + kStartBytes + k / kTileBytes * kStepBytes + k % kTileBytes / 4 * kTileBytes;
            for (int half = 0; half < 2; ++half) {
                const __mmask16 bytes = __mmask16(mask_of_first(columns - half * kTileRows));
                const int8_t* from = source + k * stride + half * kTileRows;
                __m128i rows[4];
                for (int i = 0; i < 4; ++i) rows[i] = _mm_maskz_loadu_epi8(k + i < depth ? bytes : 0, from + i * stride);
                _mm512_storeu_si512(tile + half * kHalfBytes, interleave(rows));
            }
        }
    }

    template <Bytes kBytes, typename Beside = Nothing>
    static void multiply(const int8_t* a, int64_t stride, int64_t rows, const char* panel, int64_t depth, int32_t* out,
                         int64_t out_stride, Ahead ahead, const Beside& beside = {}) {
        if (rows > kTileRows) {
            block<kBytes, 2>(a, stride, panel, steps(depth), out, out_stride * 4, ahead, beside);
        } else {
            block<kBytes, 1>(a, stride, panel, steps(depth), out, out_stride * 4, ahead, beside);
        }
    }

private:
    static constexpr int64_t kStartBytes = kColumns * 4, kHalfBytes = kTileRows * kTileBytes, kStepBytes = 2 * kHalfBytes;

    // A function of its own: among the callers' variables no register would be left for addresses.
    // Other work is done between the steps: the unit for tiles multiplies by itself, and takes a while for each.
    template <Bytes kBytes, int kHalves, typename Beside>
    [[gnu::noinline]] static void block(const int8_t* a, int64_t stride, const char* panel, int64_t steps, int32_t* out,
                                        int64_t out_stride, Ahead ahead, const Beside& beside) {
        // A stride of 0 puts the start into every row.
        tile_load<0>(panel, 0);
        tile_load<1>(panel + kTileBytes, 0);
        if constexpr (kHalves == 2) {
            tile_load<2>(panel, 0);
            tile_load<3>(panel + kTileBytes, 0);
        }
        const int8_t* below = a + kTileRows * stride;
        const char* columns = panel + kStartBytes;
        const int64_t ahead_step = steps > 0 ? ahead.size / steps : 0;
        for (int64_t step = 0; step < steps; ++step) {
            for (int64_t i = 0; i < ahead_step; i += 64) _mm_prefetch(ahead.bytes + i, _MM_HINT_T1);
            ahead.bytes += ahead_step;
            tile_load<4>(a + step * kTileBytes, stride);
            tile_load<6>(columns + step * kStepBytes, kTileBytes);
            dot<kBytes, 0, 4, 6>();
            tile_load<7>(columns + step * kStepBytes + kHalfBytes, kTileBytes);
            dot<kBytes, 1, 4, 7>();
            if constexpr (kHalves == 2) {
                tile_load<5>(below + step * kTileBytes, stride);
                dot<kBytes, 2, 5, 6>();
                dot<kBytes, 3, 5, 7>();
            }
            beside(step, steps);
        }
        if (steps == 0) beside(0, 1);
        tile_store<0>(out, out_stride);
        tile_store<1>(out + kTileRows, out_stride);
        if constexpr (kHalves == 2) {
            int32_t* out_below = out + kTileRows * out_stride / 4;
            tile_store<2>(out_below, out_stride);
            tile_store<3>(out_below + kTileRows, out_stride);
        }
    }

    template <Bytes kBytes, int sum, int a, int b>
    static void dot() {
        if constexpr (kBytes == Bytes::kSigned) {
            tile_dot_signed<sum, a, b>();
        } else {
            tile_dot_unsigned<sum, a, b>();
        }
    }

    static int64_t steps(int64_t depth) { return (depth + kTileBytes - 1) / kTileBytes; }

    static __mmask64 mask_of_first(int64_t count) {
        return count >= 64 ? ~uint64_t{0} : count <= 0 ? 0 : (uint64_t{1} << count) - 1;
    }

    static void pack_start(const int32_t* start, int64_t columns, char* panel) {
        std::memset(panel, 0, kStartBytes);
        if (start != nullptr) std::memcpy(panel, start, std::size_t(columns) * sizeof *start);
    }

    // Four rows of 16 bytes become 16 columns of four bytes.
    static __m512i interleave(const __m128i (&rows)[4]) {
        __m512i all = _mm512_castsi128_si512(rows[0]);
        all = _mm512_inserti32x4(all, rows[1], 1);
        all = _mm512_inserti32x4(all, rows[2], 2);
        all = _mm512_inserti32x4(all, rows[3], 3);
        all = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), all);
        return _mm512_shuffle_epi8(all, _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
    }

    // 16 x 16 integers of 32 bits, in place: pairs, then fours within 128 bits, then the 128 bits themselves.
    static void transpose(__m512i (&x)[16]) {
        __m512i y[16];
        for (int i = 0; i < 16; i += 2) {
            y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
            x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
            x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
            x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
        }
        constexpr int kEven = 0x88, kOdd = 0xdd;
        for (int i = 0; i < 4; ++i) {
            y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], kEven);
            y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], kOdd);
            y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], kEven);
            y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], kOdd);
        }
        for (int i = 0; i < 8; ++i) {
            x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], kEven);
            x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], kOdd);
        }
    }
};

}  // namespace
}  // namespace bertkit

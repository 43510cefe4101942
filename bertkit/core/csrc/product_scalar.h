// Products of 8 bit integers in plain C++; and what the Product of every product_*.h means.
//
// A product multiplies rows of bytes (activations; probabilities) with a panel of kColumns columns (weights; keys; values),
// which has been arranged as the instructions want it, and gives integers of 32 bits.
//
// Here a panel is the start of its columns, then one column behind the other. Compilers find the instructions for sums of
// products of 16 bits by themselves where a CPU has them, so both sides are widened, a piece of the depth at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "product.h"

namespace bertkit {
namespace {

struct Product {
    static constexpr int kRows = 16;         ///< most rows of one call; all of them may be read, and written to the result
    static constexpr int kRowStep = 1;       ///< rows cost as much as the next multiple of this
    static constexpr int kRowsPerRead = 16;  ///< fewer rows take less time than a thread needs to read the panels for them
    static constexpr int kColumns = 16;      ///< columns of a panel
    static constexpr int kDepthStep = 1;     ///< rows are read up to the next multiple of this; panels are 0 there
    static constexpr uint8_t kFlip = 0;      ///< signed bytes of rows are kept as x XOR kFlip

    /// Before the first and after the last product of a thread.
    static void begin() {}
    static void end() {}

    /// Size of a panel, a multiple of 64.
    static int64_t panel_bytes(int64_t depth) { return round_up(kStartBytes + depth * kColumns, 64); }

    /// Arrange a panel whose columns are rows in memory: weights, keys.
    ///
    /// columns: so many there are; the others become 0. start: [columns], what each sum starts with, or NULL for 0.
    /// flip: what the source's bytes have been XORed with.
    static void pack_rows(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, const int32_t* start,
                          uint8_t flip, char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        if (start != nullptr) std::memcpy(panel, start, std::size_t(columns) * sizeof *start);
        for (int64_t column = 0; column < columns; ++column) {
            char* out = panel + kStartBytes + column * depth;
            for (int64_t k = 0; k < depth; ++k) out[k] = char(source[column * stride + k] ^ flip);
        }
    }

    /// Arrange a panel whose columns are columns in memory, to be multiplied with unsigned rows: values. Sums start with 0.
    static void pack_columns(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, uint8_t flip, char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        for (int64_t column = 0; column < columns; ++column) {
            char* out = panel + kStartBytes + column * depth;
            for (int64_t k = 0; k < depth; ++k) out[k] = char(source[k * stride + column] ^ flip);
        }
    }

    /// out[row, column] = start[column] + the sum of a[row, k] * panel[k, column].
    ///
    /// a: [rows, depth] with `stride` bytes between rows. out: [kRows, kColumns] with `out_stride` integers between rows.
    template <Bytes kBytes, typename Beside = Nothing>
    static void multiply(const int8_t* a, int64_t stride, int64_t rows, const char* panel, int64_t depth, int32_t* out,
                         int64_t out_stride, Ahead, const Beside& beside = {}) {
        beside(0, 1);
        for (int64_t row = 0; row < rows; ++row) std::memcpy(out + row * out_stride, panel, kStartBytes);
        for (int64_t first = 0; first < depth; first += kPiece) {
            const int64_t count = depth - first < kPiece ? depth - first : kPiece;
            int16_t wide[kRows][kPiece];
            for (int64_t row = 0; row < rows; ++row) {
                const int8_t* from = a + row * stride + first;
                if (kBytes == Bytes::kSigned) {
                    widen(from, count, wide[row]);
                } else {
                    widen(reinterpret_cast<const uint8_t*>(from), count, wide[row]);
                }
            }
            for (int64_t column = 0; column < kColumns; column += 4) {
                int16_t columns[4][kPiece];
                for (int i = 0; i < 4; ++i) {
                    const char* from = panel + kStartBytes + (column + i) * depth + first;
                    widen(reinterpret_cast<const int8_t*>(from), count, columns[i]);
                }
                for (int64_t row = 0; row < rows; ++row) {
                    add_products(wide[row], columns, count, out + row * out_stride + column);
                }
            }
        }
    }

private:
    static constexpr int64_t kStartBytes = kColumns * sizeof(int32_t);
    static constexpr int64_t kPiece = 512;

    template <typename Byte>
    static void widen(const Byte* from, int64_t count, int16_t* to) {
        for (int64_t k = 0; k < count; ++k) to[k] = from[k];
    }

    static void add_products(const int16_t* row, const int16_t (&columns)[4][kPiece], int64_t count, int32_t* out) {
        int32_t sums[4] = {};
        for (int64_t k = 0; k < count; ++k) {
            for (int i = 0; i < 4; ++i) sums[i] += row[k] * columns[i][k];
        }
        for (int i = 0; i < 4; ++i) out[i] += sums[i];
    }

    static int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
};

}  // namespace
}  // namespace bertkit

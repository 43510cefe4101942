// Products of 8 bit integers in plain C++; and what the Product of every product_*.h means.
//
// A product multiplies rows of bytes (activations; probabilities) with a panel of kColumns columns (weights; keys; values),
// which has been arranged as the instructions want it, and gives integers of 32 bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace bertkit {
namespace {

/// Memory that will be needed next: a product asks for it on the side, so that it is in the cache by then.
struct Ahead {
    const char* bytes;
    int64_t size;
};

/// How the bytes of rows are to be read.
enum class Bytes { kSigned, kUnsigned };

struct Product {
    static constexpr int kRows = 8;       ///< most rows of one call; all of them may be read, and written to the result
    static constexpr int kRowStep = 1;    ///< rows cost as much as the next multiple of this
    static constexpr int kColumns = 16;   ///< columns of a panel
    static constexpr int kDepthStep = 1;  ///< rows are read up to the next multiple of this; panels are 0 there
    static constexpr uint8_t kFlip = 0;   ///< signed bytes of rows are kept as x XOR kFlip

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
        for (int64_t k = 0; k < depth; ++k) {
            char* out = panel + kStartBytes + k * kColumns;
            for (int64_t column = 0; column < columns; ++column) out[column] = char(source[column * stride + k] ^ flip);
        }
    }

    /// Arrange a panel whose columns are columns in memory, to be multiplied with unsigned rows: values. Sums start with 0.
    static void pack_columns(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, uint8_t flip, char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        for (int64_t k = 0; k < depth; ++k) {
            char* out = panel + kStartBytes + k * kColumns;
            for (int64_t column = 0; column < columns; ++column) out[column] = char(source[k * stride + column] ^ flip);
        }
    }

    /// out[row, column] = start[column] + the sum of a[row, k] * panel[k, column].
    ///
    /// a: [rows, depth] with `stride` bytes between rows. out: [kRows, kColumns] with `out_stride` integers between rows.
    template <Bytes kBytes>
    static void multiply(const int8_t* a, int64_t stride, int64_t rows, const char* panel, int64_t depth, int32_t* out,
                         int64_t out_stride, Ahead) {
        for (int64_t row = 0; row < rows; ++row) {
            int32_t sums[kColumns];
            std::memcpy(sums, panel, sizeof sums);
            for (int64_t k = 0; k < depth; ++k) {
                const int8_t byte = a[row * stride + k];
                const int32_t factor = kBytes == Bytes::kSigned ? byte : uint8_t(byte);
                const int8_t* weights = reinterpret_cast<const int8_t*>(panel) + kStartBytes + k * kColumns;
                for (int column = 0; column < kColumns; ++column) sums[column] += factor * weights[column];
            }
            std::memcpy(out + row * out_stride, sums, sizeof sums);
        }
    }

private:
    static constexpr int64_t kStartBytes = kColumns * sizeof(int32_t);

    static int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
};

}  // namespace
}  // namespace bertkit

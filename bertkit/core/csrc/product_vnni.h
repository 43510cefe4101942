// Products of 8 bit integers with VPDPBUSD, for vectors of any width. What the functions mean is written in product_scalar.h.
//
// VPDPBUSD multiplies unsigned by signed bytes. Signed rows are therefore kept as x XOR 0x80, which is x + 128 without a sign,
// and the sums start with so much less. A panel is that start of its columns, then for every four of the depth four bytes of
// each column.
//
// Included by product_avx512.h and product_avxvnni.h, behind `dot`, the instruction, and kBlockRows: for so many rows of two
// vectors each, and for what they are made of, there are registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "product.h"

namespace bertkit {
namespace {

struct Product {
    static constexpr int kRows = 3 * kBlockRows;  // with fewer, the panel comes from the second-level cache too often
    static constexpr int kRowStep = 1;
    static constexpr int kRowsPerRead = 48;
    static constexpr int kColumns = 2 * kLanes;
    static constexpr int kDepthStep = 4;
    static constexpr uint8_t kFlip = 0x80;

    static void begin() {}
    static void end() {}

    static int64_t panel_bytes(int64_t depth) { return (1 + steps(depth)) * kStepBytes; }

    static void pack_rows(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, const int32_t* start,
                          uint8_t flip, char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        const int64_t whole = depth / 4, left = depth % 4;
        for (int64_t column = 0; column < columns; ++column) {
            const int8_t* from = source + column * stride;
            char* to = panel + kStepBytes + column * 4;
            for (int64_t step = 0; step < whole; ++step) copy_four(from + step * 4, 4, flip, to + step * kStepBytes);
            if (left > 0) copy_four(from + whole * 4, left, flip, to + whole * kStepBytes);
        }
        int32_t starts[kColumns] = {};
        if (start != nullptr) std::memcpy(starts, start, std::size_t(columns) * sizeof *start);
        for (int half = 0; half < kColumns; half += kLanes) {
            Vector less = broadcast(0);
            for (int64_t step = 1; step <= steps(depth); ++step) {
                less = dot(less, broadcast(int32_t(four_times(kFlip))), vector_at(panel + step * kStepBytes + half * 4));
            }
            store(starts + half, subtract(load(starts + half), less));
        }
        std::memcpy(panel, starts, sizeof starts);
    }

    static void pack_columns(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, uint8_t flip, char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        for (int64_t k = 0; k < depth; k += 4) {
            const int64_t left = depth - k;
            const int8_t* rows[4];  // beyond the last one a row of zeros
            for (int64_t i = 0; i < 4; ++i) rows[i] = i < left ? source + (k + i) * stride : kZeros;
            const uint32_t flips = left < 4 ? four_times(flip) >> 8 * (4 - left) : four_times(flip);
            interleave(rows[0], rows[1], rows[2], rows[3], columns, flips,
                       reinterpret_cast<uint32_t*>(panel + (1 + k / 4) * kStepBytes));
        }
    }

    template <Bytes, typename Beside = Nothing>
    static void multiply(const int8_t* a, int64_t stride, int64_t rows, const char* panel, int64_t depth, int32_t* out,
                         int64_t out_stride, Ahead ahead, const Beside& beside = {}) {
        beside(0, 1);
        const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
        ahead.size /= blocks;
        for (int64_t i = 0; i < blocks; ++i, ahead.bytes += ahead.size) {
            const int64_t row = rows * i / blocks, count = rows * (i + 1) / blocks - row;
            block_of<kBlockRows>(count, a + row * stride, stride, panel, steps(depth), out + row * out_stride, out_stride,
                                 ahead);
        }
    }

private:
    static constexpr int8_t kZeros[kColumns] = {};
    static constexpr int64_t kVectorBytes = kLanes * 4, kStepBytes = 2 * kVectorBytes;

    static uint32_t four_times(uint8_t byte) { return byte * 0x01010101u; }

    static void copy_four(const int8_t* from, int64_t count, uint8_t flip, char* to) {
        uint32_t four = 0;
        std::memcpy(&four, from, std::size_t(count));
        four ^= four_times(flip) >> 8 * (4 - count);
        std::memcpy(to, &four, sizeof four);
    }

    // Four rows of bytes become columns of four bytes.
    static void interleave(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, int64_t columns, uint32_t flips,
                           uint32_t* __restrict__ out) {
        for (int64_t column = 0; column < columns; ++column) {
            const uint32_t low = uint32_t(uint8_t(a[column])) | uint32_t(uint8_t(b[column])) << 8;
            const uint32_t high = uint32_t(uint8_t(c[column])) | uint32_t(uint8_t(d[column])) << 8;
            out[column] = (low | high << 16) ^ flips;
        }
    }

    // block<count>
    template <int kCount, typename... Arguments>
    static void block_of(int64_t count, Arguments... arguments) {
        if constexpr (kCount > 1) {
            if (count < kCount) return block_of<kCount - 1>(count, arguments...);
        }
        block<kCount>(arguments...);
    }

    // The sums of a few rows. They stay in registers from the first to the last step, so everything has to be unrolled.
    template <int kCount>
    [[gnu::noinline]] static void block(const int8_t* a, int64_t stride, const char* panel, int64_t steps, int32_t* out,
                                        int64_t out_stride, Ahead ahead) {
        Vector left[kCount], right[kCount];
#pragma GCC unroll 16
        for (int row = 0; row < kCount; ++row) {
            left[row] = vector_at(panel);
            right[row] = vector_at(panel + kVectorBytes);
        }
        // x86 addresses three rows from one register with the stride in a second one.
        const int8_t* threes[(kCount + 2) / 3];
#pragma GCC unroll 16
        for (int i = 0; i < (kCount + 2) / 3; ++i) threes[i] = a + 3 * i * stride;
        const int64_t ahead_step = steps > 0 ? ahead.size / steps : 0;
        for (int64_t step = 0; step < steps; ++step) {
            __builtin_prefetch(ahead.bytes, 0, 2);
            ahead.bytes += ahead_step;
            panel += kStepBytes;
            const Vector left_weights = vector_at(panel), right_weights = vector_at(panel + kVectorBytes);
#pragma GCC unroll 16
            for (int row = 0; row < kCount; ++row) {
                int32_t bytes;
                std::memcpy(&bytes, threes[row / 3] + row % 3 * stride + step * 4, sizeof bytes);
                const Vector factors = broadcast(bytes);
                left[row] = dot(left[row], factors, left_weights);
                right[row] = dot(right[row], factors, right_weights);
            }
        }
#pragma GCC unroll 16
        for (int row = 0; row < kCount; ++row) {
            store(out + row * out_stride, left[row]);
            store(out + row * out_stride + kLanes, right[row]);
        }
    }

    static Vector vector_at(const char* from) { return load(reinterpret_cast<const int32_t*>(from)); }
    static int64_t steps(int64_t depth) { return (depth + 3) / 4; }
};

}  // namespace
}  // namespace bertkit

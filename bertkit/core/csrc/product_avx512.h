// Products of 8 bit integers with AVX512-VNNI. What the functions mean is written in product_scalar.h.
//
// VPDPBUSD multiplies unsigned by signed bytes. Signed rows are therefore kept as x XOR 0x80, which is x + 128 without a sign,
// and the sums start with so much less. A panel is that start of its columns, then for every four of the depth 32 columns of
// four bytes each.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace bertkit {
namespace {

struct Ahead {
    const char* bytes;
    int64_t size;
};

enum class Bytes { kSigned, kUnsigned };

struct Product {
    static constexpr int kRows = 28;
    static constexpr int kRowStep = 1;
    static constexpr int kColumns = 32;
    static constexpr int kDepthStep = 4;
    static constexpr uint8_t kFlip = 0x80;

    static void begin() {}
    static void end() {}

    static int64_t panel_bytes(int64_t depth) { return kStartBytes + steps(depth) * kStepBytes; }

    static void pack_rows(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, const int32_t* start,
                          uint8_t flip, char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        for (int64_t column = 0; column < columns; ++column) {
            for (int64_t k = 0; k < depth; ++k) {
                panel[kStartBytes + k / 4 * kStepBytes + column * 4 + k % 4] = char(source[column * stride + k] ^ flip);
            }
        }
        __m512i sums[kVectors] = {};
        for (int64_t step = 0; step < steps(depth); ++step) {
            for (int i = 0; i < kVectors; ++i) {
                sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_set1_epi8(1), load_step(panel, step, i));
            }
        }
        alignas(64) int32_t starts[kColumns] = {};
        if (start != nullptr) std::memcpy(starts, start, std::size_t(columns) * sizeof *start);
        for (int i = 0; i < kVectors; ++i) {
            const __m512i less = _mm512_slli_epi32(sums[i], 7);
            _mm512_storeu_si512(panel + i * 64, _mm512_sub_epi32(_mm512_load_si512(starts + i * 16), less));
        }
    }

    static void pack_columns(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, uint8_t flip, char* panel) {
        std::memset(panel, 0, std::size_t(panel_bytes(depth)));
        for (int64_t k = 0; k < depth; ++k) {
            char* out = panel + kStartBytes + k / 4 * kStepBytes + k % 4;
            for (int64_t column = 0; column < columns; ++column) out[column * 4] = char(source[k * stride + column] ^ flip);
        }
    }

    template <Bytes>
    static void multiply(const int8_t* a, int64_t stride, int64_t rows, const char* panel, int64_t depth, int32_t* out,
                         int64_t out_stride, Ahead ahead) {
        constexpr Block kBlocks[kBlockRows + 1] = {nullptr,    block<1>, block<2>, block<3>,  block<4>,  block<5>,  block<6>, block<7>,
                                                   block<8>, block<9>, block<10>, block<11>, block<12>, block<13>, block<14>};
        const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
        ahead.size /= blocks;
        for (int64_t i = 0; i < blocks; ++i, ahead.bytes += ahead.size) {
            const int64_t row = rows * i / blocks, count = rows * (i + 1) / blocks - row;
            kBlocks[count](a + row * stride, stride, panel, steps(depth), out + row * out_stride, out_stride, ahead);
        }
    }

private:
    // 14 rows of two vectors leave room for what they are made of in 32 registers.
    static constexpr int kVectors = kColumns / 16, kBlockRows = 14;
    static constexpr int64_t kStartBytes = kColumns * 4, kStepBytes = kColumns * 4;

    using Block = void (*)(const int8_t*, int64_t, const char*, int64_t, int32_t*, int64_t, Ahead);

    // The sums of a few rows, kept in registers from the first to the last step.
    template <int kCount>
    static void block(const int8_t* a, int64_t stride, const char* panel, int64_t steps, int32_t* out, int64_t out_stride,
                      Ahead ahead) {
        __m512i sums[kCount][kVectors];
        for (int row = 0; row < kCount; ++row) {
            for (int i = 0; i < kVectors; ++i) sums[row][i] = _mm512_loadu_si512(panel + i * 64);
        }
        // x86 addresses three rows from one register with the stride in a second one.
        const int8_t* threes[(kCount + 2) / 3];
        for (int i = 0; i < (kCount + 2) / 3; ++i) threes[i] = a + 3 * i * stride;
        const int64_t ahead_step = steps > 0 ? ahead.size / steps : 0;
        for (int64_t step = 0; step < steps; ++step, ahead.bytes += ahead_step) {
            _mm_prefetch(ahead.bytes, _MM_HINT_T1);
            const __m512i weights[kVectors] = {load_step(panel, step, 0), load_step(panel, step, 1)};
#pragma GCC unroll 14
            for (int row = 0; row < kCount; ++row) {
                int32_t bytes;
                std::memcpy(&bytes, threes[row / 3] + row % 3 * stride + step * 4, sizeof bytes);
                for (int i = 0; i < kVectors; ++i) {
                    sums[row][i] = _mm512_dpbusd_epi32(sums[row][i], _mm512_set1_epi32(bytes), weights[i]);
                }
            }
        }
        for (int row = 0; row < kCount; ++row) {
            for (int i = 0; i < kVectors; ++i) _mm512_storeu_si512(out + row * out_stride + i * 16, sums[row][i]);
        }
    }

    static int64_t steps(int64_t depth) { return (depth + 3) / 4; }
    static __m512i load_step(const char* panel, int64_t step, int i) {
        return _mm512_loadu_si512(panel + kStartBytes + step * kStepBytes + i * 64);
    }
};

}  // namespace
}  // namespace bertkit

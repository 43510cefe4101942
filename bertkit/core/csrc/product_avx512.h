// Products of 8 bit integers with AVX512-VNNI. What the functions mean is written in product_scalar.h.
//
// VPDPBUSD multiplies unsigned by signed bytes. Signed rows are therefore kept as x XOR 0x80, which is x + 128 without a sign,
// and the sums start with so much less. A panel is that start of its columns, then for every four of the depth 32 columns of
// four bytes each.
#pragma once

// GCC 12 warns of its own headers: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

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
        alignas(64) int32_t starts[kColumns] = {};
        if (start != nullptr) std::memcpy(starts, start, std::size_t(columns) * sizeof *start);
        for (int half = 0; half < kColumns; half += 16) {
            __m512i sum = _mm512_setzero_si512();
            for (int64_t step = 0; step < steps(depth); ++step) {
                const char* weights = panel + kStartBytes + step * kStepBytes + half * 4;
                sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(char(kFlip)), _mm512_loadu_si512(weights));
            }
            _mm512_storeu_si512(panel + half * 4, _mm512_sub_epi32(_mm512_load_si512(starts + half), sum));
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
    static constexpr int kBlockRows = 14;
    static constexpr int64_t kStartBytes = kColumns * 4, kStepBytes = kColumns * 4;

    using Block = void (*)(const int8_t*, int64_t, const char*, int64_t, int32_t*, int64_t, Ahead);

    // The sums of a few rows, which stay in registers from the first to the last step: everything has to be unrolled for that.
    template <int kCount>
    static void block(const int8_t* a, int64_t stride, const char* panel, int64_t steps, int32_t* out, int64_t out_stride,
                      Ahead ahead) {
        __m512i left[kCount], right[kCount];
#pragma GCC unroll 14
        for (int row = 0; row < kCount; ++row) {
            left[row] = _mm512_loadu_si512(panel);
            right[row] = _mm512_loadu_si512(panel + 64);
        }
        // x86 addresses three rows from one register with the stride in a second one.
        const int8_t* threes[(kCount + 2) / 3];
#pragma GCC unroll 5
        for (int i = 0; i < (kCount + 2) / 3; ++i) threes[i] = a + 3 * i * stride;
        const int64_t ahead_step = steps > 0 ? ahead.size / steps : 0;
        for (int64_t step = 0; step < steps; ++step) {
            _mm_prefetch(ahead.bytes, _MM_HINT_T1);
            ahead.bytes += ahead_step;
            panel += kStepBytes;
            const __m512i left_weights = _mm512_loadu_si512(panel), right_weights = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 14
            for (int row = 0; row < kCount; ++row) {
                int32_t bytes;
                std::memcpy(&bytes, threes[row / 3] + row % 3 * stride + step * 4, sizeof bytes);
                const __m512i factors = _mm512_set1_epi32(bytes);
                left[row] = _mm512_dpbusd_epi32(left[row], factors, left_weights);
                right[row] = _mm512_dpbusd_epi32(right[row], factors, right_weights);
            }
        }
#pragma GCC unroll 14
        for (int row = 0; row < kCount; ++row) {
            _mm512_storeu_si512(out + row * out_stride, left[row]);
            _mm512_storeu_si512(out + row * out_stride + 16, right[row]);
        }
    }

    static int64_t steps(int64_t depth) { return (depth + 3) / 4; }
};

}  // namespace
}  // namespace bertkit

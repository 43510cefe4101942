// The tile instructions of AMX, one function each; or, to test their callers on a CPU without them, the same in plain C++.
//
// The compiler's intrinsics are not used: those of GCC 12 do not say that they read memory, so that a store may be moved
// behind the load it was meant for, or be dropped as useless.
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2.
#pragma once

#include <cstdint>

#if defined(BERTKIT_EMULATE_AMX)
#include <cstdio>
#include <cstdlib>
#include <cstring>
#endif

namespace bertkit {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64, kTiles = 8;

/// What LDTILECFG reads. All tiles have their largest shape here: rows and bytes that a product does not have are padding.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr TileConfig() {
        for (int tile = 0; tile < kTiles; ++tile) row_bytes[tile] = kTileBytes, rows[tile] = kTileRows;
    }
};
static_assert(sizeof(TileConfig) == 64);
constexpr TileConfig kTileConfig;

#if !defined(BERTKIT_EMULATE_AMX)

/// Turn the calling thread's tiles on.
inline void tiles_begin() { __asm__ volatile("ldtilecfg %0" : : "m"(kTileConfig)); }

/// Turn them off: until then every switch of threads saves 8 KB more, and the CPU's core may not sleep deeply.
inline void tiles_end() { __asm__ volatile("tilerelease"); }

template <int tile>
inline void tile_zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
}

/// Rows of 64 bytes, `stride` bytes apart.
template <int tile>
inline void tile_load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(tile), "r"(from), "r"(stride) : "memory");
}

template <int tile>
inline void tile_store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(tile), "r"(to), "r"(stride) : "memory");
}

/// sum[row][column] += a[row][4k ... 4k + 3] . b[k][4 column ... 4 column + 3], for int8 a and b, int32 sum.
template <int sum, int a, int b>
inline void tile_dot_signed() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

/// The same for uint8 a.
template <int sum, int a, int b>
inline void tile_dot_unsigned() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

#else

struct Tiles {
    bool on = false;
    uint8_t bytes[kTiles][kTileRows][kTileBytes];
};
thread_local Tiles tiles;

// The CPU raises #UD where this ends the process.
void tiles_require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "tiles: %s\n", what);
    std::abort();
}

void tiles_begin() {
    tiles.on = true;
    std::memset(tiles.bytes, 0, sizeof tiles.bytes);
}

void tiles_end() { tiles.on = false; }

template <int tile>
auto& tile_bytes() {
    static_assert(0 <= tile && tile < kTiles);
    tiles_require(tiles.on, "used before they were configured, or after their release");
    return tiles.bytes[tile];
}

template <int tile>
void tile_zero() {
    std::memset(tile_bytes<tile>(), 0, sizeof tiles.bytes[tile]);
}

template <int tile>
void tile_load(const void* from, int64_t stride) {
    for (int row = 0; row < kTileRows; ++row) {
        std::memcpy(tile_bytes<tile>()[row], static_cast<const char*>(from) + row * stride, kTileBytes);
    }
}

template <int tile>
void tile_store(void* to, int64_t stride) {
    for (int row = 0; row < kTileRows; ++row) {
        std::memcpy(static_cast<char*>(to) + row * stride, tile_bytes<tile>()[row], kTileBytes);
    }
}

template <int sum, int a, int b, typename A>
void tile_dot() {
    static_assert(sum != a && sum != b && a != b, "#UD");
    static_assert(kTileBytes == 4 * kTileRows, "a has as many groups of four columns as b has rows");
    auto &sums = tile_bytes<sum>(), &rows = tile_bytes<a>(), &columns = tile_bytes<b>();
    for (int row = 0; row < kTileRows; ++row) {
        int32_t totals[kTileBytes / 4];
        std::memcpy(totals, sums[row], sizeof totals);
        for (int k = 0; k < kTileBytes; ++k) {
            const int32_t factor = A(rows[row][k]);
            for (int column = 0; column < kTileBytes / 4; ++column) {
                totals[column] += factor * int8_t(columns[k / 4][column * 4 + k % 4]);
            }
        }
        std::memcpy(sums[row], totals, sizeof totals);
    }
}

template <int sum, int a, int b>
void tile_dot_signed() {
    tile_dot<sum, a, b, int8_t>();
}

template <int sum, int a, int b>
void tile_dot_unsigned() {
    tile_dot<sum, a, b, uint8_t>();
}

#endif

}  // namespace
}  // namespace bertkit

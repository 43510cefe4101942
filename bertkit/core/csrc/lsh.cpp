// The C interface of YOSO's kernels: checks what comes in, and finds the code for the level.
#include "lsh.h"

#include "cpu.h"
#include "threads.h"

namespace bertkit {
namespace {

constexpr int64_t kMost = int64_t(1) << 40;  // of anything: products of a few stay far from overflow
constexpr int64_t kMostBits = 24;            // a table has so many buckets
constexpr int64_t kMostRows = int64_t(1) << 31;

const LshLevel* level_of(int64_t level) {
    if (level < 0 || level >= BK_LEVELS || !has_level(int(level))) return nullptr;
#if defined(BERTKIT_HAS_AVX512)
    if (level >= BK_AVX512) return &lsh_avx512;
#endif
#if defined(BERTKIT_HAS_AVX2)
    if (level >= BK_AVX2) return &lsh_avx2;
#endif
    return &lsh_scalar;
}

bool within(int64_t x, int64_t least, int64_t most) { return least <= x && x <= most; }

bool fits(const bk_lsh& of, int64_t rows, int64_t width) {
    return within(of.sequences, 0, kMost) && within(of.heads, 1, kMostRows) && within(of.hashes, 1, kMostRows) &&
           within(of.code_bits, 1, kMostBits) && within(rows, 0, kMostRows - 1) && within(width, 1, kMostRows) &&
           of.threads >= 1;
}

bool are_functions(const bk_lsh& of, const bk_lsh_functions& functions) {
    const int64_t size = functions.size;
    if (functions.numbers == nullptr || !within(functions.width, 1, kMostRows)) return false;
    if (functions.parts == 0) return size == 0;
    const bool transforms = within(size, 32, kMostRows) && (size & (size - 1)) == 0 && functions.width <= size;
    return transforms && of.code_bits <= size &&
           functions.parts == (of.hashes + size / of.code_bits - 1) / (size / of.code_bits);
}

// Whether there are codes, or what they are made of.
int check(const bk_lsh& of, const bk_lsh_functions& functions, const bk_lsh_side& side) {
    if (side.rows == 0 || side.codes != nullptr) return BK_OK;
    if (side.vectors.data == nullptr) return BK_BAD_ARGUMENT;
    return are_functions(of, functions) ? BK_OK : BK_BAD_SHAPE;
}

// What sums have in common.
int check(const bk_lsh& of, const bk_lsh_functions& functions, const bk_lsh_side& queries, const bk_lsh_side& keys,
          int64_t width, int64_t score_width) {
    if (level_of(of.level) == nullptr) return BK_NO_LEVEL;
    if (!fits(of, queries.rows, width) || !fits(of, keys.rows, score_width)) return BK_BAD_SHAPE;
    const int code = check(of, functions, queries);
    return code == BK_OK ? check(of, functions, keys) : code;
}

}  // namespace
}  // namespace bertkit

int bk_lsh_run_hash(const bk_lsh_hash* call) {
    using namespace bertkit;
    if (call == nullptr) return BK_BAD_ARGUMENT;
    const LshLevel* level = level_of(call->of.level);
    if (level == nullptr) return BK_NO_LEVEL;
    if (!fits(call->of, call->side.rows, call->functions.width) || call->side.codes != nullptr) return BK_BAD_SHAPE;
    const int code = check(call->of, call->functions, call->side);
    return code == BK_OK ? level->hash(*call) : code;
}

int bk_lsh_run_sum(const bk_lsh_sum* call) {
    using namespace bertkit;
    if (call == nullptr) return BK_BAD_ARGUMENT;
    const int code = check(call->of, call->functions, call->queries, call->keys, call->width, call->width);
    return code == BK_OK ? level_of(call->of.level)->sum(*call) : code;
}

int bk_lsh_run_weighted_sum(const bk_lsh_weighted_sum* call) {
    using namespace bertkit;
    if (call == nullptr) return BK_BAD_ARGUMENT;
    const int code = check(call->of, {}, call->queries, call->keys, call->width, call->weight_width);
    return code == BK_OK ? level_of(call->of.level)->weighted_sum(*call) : code;
}

int bk_lsh_run_gradients(const bk_lsh_gradients* call) {
    using namespace bertkit;
    if (call == nullptr) return BK_BAD_ARGUMENT;
    const int code = check(call->of, call->functions, call->queries, call->keys, call->functions.width, call->width);
    return code == BK_OK ? level_of(call->of.level)->gradients(*call) : code;
}

// YOSO's kernels for AVX2.
namespace {

constexpr int kLanes = 8;

}  // namespace

#include "lsh_kernels.h"

namespace bertkit {

const LshLevel lsh_avx2 = {&lsh::hash, &lsh::sum, &lsh::weighted_sum, &lsh::gradients};

}  // namespace bertkit

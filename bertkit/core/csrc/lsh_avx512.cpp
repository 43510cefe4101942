// YOSO's kernels for AVX-512.
namespace {

constexpr int kLanes = 16;

}  // namespace

#include "lsh_kernels.h"

namespace bertkit {

const LshLevel lsh_avx512 = {&lsh::hash, &lsh::sum, &lsh::weighted_sum, &lsh::gradients};

}  // namespace bertkit

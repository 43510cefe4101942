// YOSO's kernels for any CPU.
namespace {

constexpr int kLanes = 4;

}  // namespace

#include "lsh_kernels.h"

namespace bertkit {

const LshLevel lsh_scalar = {&lsh::hash, &lsh::sum, &lsh::weighted_sum, &lsh::gradients};

}  // namespace bertkit

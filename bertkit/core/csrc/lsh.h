// What lsh.cpp, which checks the arguments, and the files for one instruction set each know of one another.
//
// As for ibert.h, a file for one instruction set leaves no inline function behind.
#pragma once

#include "bertkit.h"

namespace bertkit {

/// The kernels of YOSO for one instruction set, behind the checks of lsh.cpp.
struct LshLevel {
    int (*hash)(const bk_lsh_hash& call);
    int (*sum)(const bk_lsh_sum& call);
    int (*weighted_sum)(const bk_lsh_weighted_sum& call);
    int (*gradients)(const bk_lsh_gradients& call);
};

extern const LshLevel lsh_scalar;
extern const LshLevel lsh_avx2;
extern const LshLevel lsh_avx512;

}  // namespace bertkit

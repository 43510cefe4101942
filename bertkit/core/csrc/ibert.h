// What ibert.cpp, which checks the arguments, and the files for one instruction set each know of one another.
//
// A file that is compiled for more instructions than the others must not leave inline functions behind which the linker
// could pick for everybody: its code is in an unnamed namespace, it instantiates nothing of the standard library, and it
// calls what is shared (threads.h) out of line. tests/packaging/test_native.py looks at the symbols.
#pragma once

#include "bertkit.h"

namespace bertkit {

/// What packed weights begin with; the dimensions follow, and from the next multiple of 64 bytes on what a level has packed.
struct IBertHeader {
    int64_t magic, abi, level, size;
};

/// The dimensions of an encoder; behind them the number of heads of each layer.
struct IBertDims {
    int64_t layers, width, head_size, inner;
};

/// The time, for differences.
int64_t nanoseconds();

/// The encoder for one instruction set. Dimensions and packed weights may be unaligned.
struct IBertLevel {
    /// Bytes of packed weights.
    int64_t (*size)(const void* dims);
    /// Pack the frozen tensors; an error code where one holds what freezing would have refused.
    int (*pack)(const void* dims, const void* const* tensors, void* weights);
    /// As bk_ibert_encode, behind its checks. Adds to the times of bk_ibert_times.
    int (*encode)(const bk_ibert_call& call, const void* dims, const void* weights, int64_t* times);
};

extern const IBertLevel ibert_scalar;
extern const IBertLevel ibert_avx2;
extern const IBertLevel ibert_avxvnni;
extern const IBertLevel ibert_avx512;
extern const IBertLevel ibert_amx;

}  // namespace bertkit

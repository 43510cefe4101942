// What ibert.cpp, which checks the arguments, and the files for one instruction set each know of one another.
//
// A file that is compiled for more instructions than the others must not leave inline functions behind which the linker
// could pick for everybody: its code is in an unnamed namespace, it instantiates nothing of the standard library, and it
// calls what is shared (threads.h) out of line. tests/packaging/test_native.py looks at the symbols.
#pragma once

#include "bertkit.h"

namespace bertkit {

/// The encoder for one instruction set.
struct IBertLevel {
    /// As bk_ibert_pack, behind its checks.
    int64_t (*pack)(const int64_t* dims, const void* const* tensors, void* packed, int64_t size);
    /// As bk_ibert_encode, behind its checks.
    int (*encode)(const bk_ibert_call& call);
};

extern const IBertLevel ibert_scalar;
extern const IBertLevel ibert_avx2;
extern const IBertLevel ibert_avx512;
extern const IBertLevel ibert_amx;

}  // namespace bertkit

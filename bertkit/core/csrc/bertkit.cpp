#include "bertkit.h"

int bk_abi(void) { return BK_ABI; }

const char* bk_error(int code) {
    switch (code) {
        case BK_OK: return "no error";
        case BK_NO_LEVEL: return "this build or this CPU does not have the instructions";
        case BK_BAD_ARGUMENT: return "an argument is null, negative or out of range";
        case BK_BAD_SHAPE: return "the dimensions are impossible, or do not fit the packed weights";
        case BK_BAD_TENSORS: return "not as many tensors as the dimensions say";
        case BK_BAD_PACKED: return "the packed weights are damaged, or of another version of bertkit";
        case BK_BAD_SIZE: return "the buffer is too small";
        case BK_BAD_ID: return "an id is outside of its embedding table, or the sequence is longer than that of positions";
        case BK_BAD_CODE: return "a code is outside of its table";
        case BK_NO_MEMORY: return "there is not enough memory";
        default: return "unknown error";
    }
}

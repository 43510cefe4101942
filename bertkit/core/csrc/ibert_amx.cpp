// The integer encoder for AMX.
#include "simd_avx512.h"
#include "product_amx.h"
#include "ibert_encoder.h"

namespace bertkit {

const IBertLevel ibert_amx = {&size, &pack, &encode};

}  // namespace bertkit

// The integer encoder for AVX2.
#include "simd_avx2.h"
#include "product_avx2.h"
#include "ibert_encoder.h"

namespace bertkit {

const IBertLevel ibert_avx2 = {&size, &pack, &encode};

}  // namespace bertkit

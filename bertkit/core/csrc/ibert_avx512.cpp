// The integer encoder for AVX512-VNNI.
#include "simd_avx512.h"
#include "product_avx512.h"
#include "ibert_encoder.h"

namespace bertkit {

const IBertLevel ibert_avx512 = {&size, &pack, &encode};

}  // namespace bertkit

// The integer encoder for AVX-VNNI.
#include "simd_avx2.h"
#include "product_avxvnni.h"
#include "ibert_encoder.h"

namespace bertkit {

const IBertLevel ibert_avxvnni = {&size, &pack, &encode};

}  // namespace bertkit

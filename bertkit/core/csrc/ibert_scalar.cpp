// The integer encoder for any CPU.
#include "simd_scalar.h"
#include "product_scalar.h"
#include "ibert_encoder.h"

namespace bertkit {

const IBertLevel ibert_scalar = {&size, &pack, &encode};

}  // namespace bertkit

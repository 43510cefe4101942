// What goes into the products of every level; product_scalar.h says what a Product is.
#pragma once

#include <cstdint>

namespace bertkit {
namespace {

/// Memory that will be needed next: a product asks for it on the side, so that it is in the cache by then.
struct Ahead {
    const char* bytes;
    int64_t size;
};

/// How the bytes of rows are to be read.
enum class Bytes { kSigned, kUnsigned };

/// Other work to do during a product, in parts: the product calls it with 0 ... count - 1 and a count of its choice.
struct Nothing {
    void operator()(int64_t /* index */, int64_t /* count */) const {}
};

}  // namespace
}  // namespace bertkit

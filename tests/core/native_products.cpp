// The vector operations and the products of one level, for test_native_products.py to call: no part of the library.
#include <initializer_list>

#include SIMD
#include PRODUCT

using namespace bertkit;

extern "C" {

// Most rows, columns, what depths are read in multiples of, and what signed rows are XORed with.
void shape(int64_t* to) {
    const int64_t numbers[] = {Product::kRows, Product::kColumns, Product::kDepthStep, Product::kFlip};
    std::memcpy(to, numbers, sizeof numbers);
}

int64_t panel_bytes(int64_t depth) { return Product::panel_bytes(depth); }

void pack_rows(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, const int32_t* start, uint8_t flip,
               char* panel) {
    Product::pack_rows(source, stride, columns, depth, start, flip, panel);
}

void pack_columns(const int8_t* source, int64_t stride, int64_t columns, int64_t depth, uint8_t flip, char* panel) {
    Product::pack_columns(source, stride, columns, depth, flip, panel);
}

// Returns whether all parts of the work beside were done once, in their order.
int multiply(int is_signed, const int8_t* a, int64_t stride, int64_t rows, const char* panel, int64_t depth, int32_t* out,
             int64_t out_stride) {
    const Ahead ahead{panel, Product::panel_bytes(depth)};
    int64_t done = 0, parts = 1;
    bool in_order = true;
    auto beside = [&](int64_t index, int64_t count) {
        in_order = in_order && index == done++ && (index == 0 || count == parts);
        parts = count;
    };
    Product::begin();
    if (is_signed) {
        Product::multiply<Bytes::kSigned>(a, stride, rows, panel, depth, out, out_stride, ahead, beside);
    } else {
        Product::multiply<Bytes::kUnsigned>(a, stride, rows, panel, depth, out, out_stride, ahead, beside);
    }
    Product::end();
    return in_order && done == parts;
}

// What each vector operation makes of `count` numbers, one operation after the other. Returns how many there are.
//
// x, y: any. small: 0 ... 255. a, b: of 61 bits. counts: 0 ... 62.
int64_t operations(int64_t count, const int32_t* x, const int32_t* y, const int32_t* small, const int64_t* a, const int64_t* b,
                   const int64_t* counts, const int8_t* bytes, int64_t* out) {
    int64_t operation = 0, at = 0;
    auto put = [&](Vector result) {
        int32_t lanes[kLanes];
        store(lanes, result);
        for (int lane = 0; lane < kLanes; ++lane) out[operation * count + at + lane] = lanes[lane];
        ++operation;
    };
    auto put_wide = [&](Wide result) {
        put(narrow(result));
        put(narrow(shift_right<16>(shift_right<16>(result))));
    };
    auto put_bytes = [&](const uint8_t* result) {
        for (int lane = 0; lane < kLanes; ++lane) out[operation * count + at + lane] = result[lane];
        ++operation;
    };
    for (; at < count; at += kLanes) {
        operation = 0;
        const Vector vx = load(x + at), vy = load(y + at), vsmall = load(small + at);
        const Wide wa = load_wide(a + at), wb = load_wide(b + at), wcounts = load_wide(counts + at);
        uint8_t stored[kLanes];
        for (int flip : {0, 0x80}) {
            put(load_bytes(bytes + at, uint8_t(flip)));
            store_bytes(reinterpret_cast<int8_t*>(stored), vx, uint8_t(flip));
            put_bytes(stored);
            store_bytes(reinterpret_cast<int8_t*>(stored), vsmall, uint8_t(flip));
            put_bytes(stored);
        }
        store_bytes(reinterpret_cast<int8_t*>(stored), wa, 0x80);
        put_bytes(stored);
        put(load_first_bytes(bytes + at, kLanes));
        store_first_bytes(reinterpret_cast<int8_t*>(stored), vx, 0, kLanes);
        put_bytes(stored);
        store_unsigned_bytes(stored, vsmall);
        put_bytes(stored);
        store_unsigned_bytes(stored, maximum(vx, broadcast(0)));
        put_bytes(stored);
        for (Vector result : {vx, broadcast(-7), add(vx, vy), subtract(vx, vy), multiply(vx, vy), minimum(vx, vy),
                              maximum(vx, vy), absolute(vx), shift_left<9>(vx), shift_right<1>(vx),
                              shift_right(vx, vsmall), multiply_short(vsmall, vsmall), first_lanes(vx, kLanes),
                              narrow(spread(vx)), high(wa)}) {
            put(result);
        }
        for (Wide result : {wa, broadcast_wide(-7), widen(vx), widen_counts(vsmall), product(wa, wb),
                            product(spread(vx), spread(vy)), unsigned_product(wa, wb), add(wa, wb), minimum(wa, wb),
                            maximum(wa, wb), shift_left(wa, wcounts), shift_right(wa, wcounts), shift_right<1>(wa),
                            shift_right<14>(wa), negated_where_negative(wa, vx)}) {
            put_wide(result);
        }
    }
    return operation;
}

// What operations across lanes make of the first so many of kLanes numbers: lanes beyond are 0, and bytes beyond untouched.
void across(int64_t count, const int32_t* x, const int64_t* a, const int8_t* bytes, int64_t* largest_and_total, int32_t* lanes,
            int32_t* loaded, int8_t* stored) {
    largest_and_total[0] = largest(load(x));
    largest_and_total[1] = total(load_wide(a));
    store(lanes, first_lanes(load(x), int(count)));
    store(loaded, load_first_bytes(bytes, int(count)));
    store_first_bytes(stored, load(x), 0, int(count));
}

int64_t lanes() { return kLanes; }

}  // extern "C"

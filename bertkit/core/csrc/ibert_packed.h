// The packed weights of an encoder: how they lie in memory, and how they get there.
//
// One function, `take_layer`, walks through the memory of a layer; packing writes along it, encoding reads along it, and with
// no memory at all it gives the size. Everything is padded to multiples of kPadding columns, with weights and multipliers of 0.
// Included behind a simd_*.h and a product_*.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "ibert.h"
#include "ibert_arithmetic.h"
#include "memory.h"

namespace bertkit {
namespace {

constexpr int64_t kPadding = 64;
static_assert(kPadding % kLanes == 0 && kPadding % Product::kColumns == 0 && kPadding % Product::kDepthStep == 0);

constexpr int64_t padded(int64_t columns) { return round_up(columns, kPadding); }

/// The dimensions of an encoder, wherever they are.
struct Dims : IBertDims {
    explicit Dims(const void* from) : head_counts_(static_cast<const char*>(from) + sizeof(IBertDims)) {
        std::memcpy(static_cast<IBertDims*>(this), from, sizeof(IBertDims));
    }

    int64_t heads(int64_t layer) const {
        int64_t count;
        std::memcpy(&count, head_counts_ + layer * int64_t(sizeof count), sizeof count);
        return count;
    }

private:
    const char* head_counts_;
};

// -- layout ---------------------------------------------------------------------------------------------------------
/// Weights and biases of a linear layer.
struct Linear {
    int64_t inputs, outputs;
    char* panels;

    char* panel(int64_t index) const { return panels + index * Product::panel_bytes(inputs); }
};

struct Residual {
    Linear dense;
    Rescaling sum, identity;
    Norm norm;
};

struct Attention {
    Linear query_key_value;  ///< one behind the other, each padded
    Rescaling rescaling;
    Softmax* softmax;
    Rescaling context;  ///< the same number for each lane
    Residual output;
};

struct Layer {
    int64_t heads;
    Attention attention;
    Linear inner;
    Gelu gelu;
    Rescaling inner_rescaling;
    Residual output;
};

struct Embeddings {
    Rescaling words, types, positions;
    Norm norm;
};

inline Rescaling take_rescaling(Walk& walk, int64_t columns) {
    return {walk.take<int32_t>(padded(columns)), walk.take<int32_t>(padded(columns))};
}

inline Linear take_linear(Walk& walk, int64_t inputs, int64_t outputs) {
    const int64_t panels = padded(outputs) / Product::kColumns;
    return {inputs, outputs, walk.take<char>(panels * Product::panel_bytes(inputs))};
}

inline Norm take_norm(Walk& walk, int64_t width) {
    return {walk.take<int32_t>(1), take_rescaling(walk, width), walk.take<int64_t>(padded(width))};
}

inline Residual take_residual(Walk& walk, int64_t inputs, int64_t width) {
    return {take_linear(walk, inputs, width), take_rescaling(walk, width), take_rescaling(walk, width), take_norm(walk, width)};
}

inline Embeddings take_embeddings(Walk& walk, const Dims& dims) {
    return {take_rescaling(walk, dims.width), take_rescaling(walk, dims.width), take_rescaling(walk, dims.width),
            take_norm(walk, dims.width)};
}

inline Layer take_layer(Walk& walk, const Dims& dims, int64_t heads) {
    const int64_t attended = heads * dims.head_size;
    return {heads,
            {take_linear(walk, dims.width, 3 * padded(attended)), take_rescaling(walk, 3 * padded(attended)),
             walk.take<Softmax>(1), take_rescaling(walk, kLanes), take_residual(walk, attended, dims.width)},
            take_linear(walk, dims.width, dims.inner),
            {walk.take<int32_t>(padded(dims.inner)), walk.take<int64_t>(padded(dims.inner)),
             walk.take<int32_t>(padded(dims.inner)), walk.take<int32_t>(padded(dims.inner))},
            take_rescaling(walk, dims.inner),
            take_residual(walk, dims.inner, dims.width)};
}

// -- packing --------------------------------------------------------------------------------------------------------
/// The frozen tensors, one after the other.
class Tensors {
public:
    explicit Tensors(const void* const* tensors) : next_(tensors) {}

    template <typename Item>
    const Item* take() {
        return static_cast<const Item*>(*next_++);
    }

    template <typename Item>
    Item number() {
        Item item;
        std::memcpy(&item, take<Item>(), sizeof item);
        return item;
    }

private:
    const void* const* next_;
};

template <typename Item>
void pack_columns(const Item* from, int64_t count, Item beyond, Item* to) {
    if (count > 0) std::memcpy(to, from, std::size_t(count) * sizeof(Item));
    for (int64_t column = count; column < padded(count); ++column) std::memcpy(to + column, &beyond, sizeof(Item));
}

inline void pack_rescaling(Tensors& tensors, int64_t columns, const Rescaling& to) {
    pack_columns(tensors.take<int32_t>(), columns, 0, to.multiplier);
    pack_columns(tensors.take<int32_t>(), columns, 1, to.right_shift);
}

inline void pack_uniform_rescaling(Tensors& tensors, const Rescaling& to) {
    const Vector multiplier = broadcast(tensors.number<int32_t>()), right_shift = broadcast(tensors.number<int32_t>());
    store(to.multiplier, multiplier);
    store(to.right_shift, right_shift);
}

/// Pack `outputs` rows of weights from a multiple of kPadding on.
inline void pack_linear(Tensors& tensors, int64_t first, int64_t outputs, const Linear& to) {
    const int8_t* weights = tensors.take<int8_t>();
    const int32_t* biases = tensors.take<int32_t>();
    for (int64_t output = 0; output < padded(outputs); output += Product::kColumns) {
        const int64_t left = outputs - output, columns = left < 0 ? 0 : left < Product::kColumns ? left : Product::kColumns;
        const int64_t begin = columns > 0 ? output : 0;
        Product::pack_rows(weights + begin * to.inputs, to.inputs, columns, to.inputs, biases + begin, 0,
                           to.panel((first + output) / Product::kColumns));
    }
}

inline void pack_norm(Tensors& tensors, int64_t width, const Norm& to) {
    const int32_t shift = tensors.number<int32_t>();
    std::memcpy(to.shift, &shift, sizeof shift);
    pack_rescaling(tensors, width, to.gain);
    pack_columns(tensors.take<int64_t>(), width, int64_t(0), to.offset);
}

inline void pack_residual(Tensors& tensors, int64_t width, const Residual& to) {
    pack_linear(tensors, 0, width, to.dense);
    pack_rescaling(tensors, width, to.sum);
    pack_rescaling(tensors, width, to.identity);
    pack_norm(tensors, width, to.norm);
}

inline bool pack_softmax(Tensors& tensors, Softmax* to) {
    Softmax softmax{};
    std::memcpy(&softmax, tensors.take<int32_t>(), 4 * sizeof(int32_t));
    softmax.multiplier = tensors.number<int32_t>();
    softmax.right_shift = tensors.number<int32_t>();
    std::memcpy(to, &softmax, sizeof softmax);
    return softmax.fits();
}

inline bool pack_layer(Tensors& tensors, const Dims& dims, const Layer& to) {
    const int64_t attended = to.heads * dims.head_size;
    for (int64_t part = 0; part < 3; ++part) {
        const int64_t first = part * padded(attended);
        pack_linear(tensors, first, attended, to.attention.query_key_value);
        pack_rescaling(tensors, attended,
                       {to.attention.rescaling.multiplier + first, to.attention.rescaling.right_shift + first});
    }
    if (!pack_softmax(tensors, to.attention.softmax)) return false;
    pack_uniform_rescaling(tensors, to.attention.context);
    pack_residual(tensors, dims.width, to.attention.output);
    pack_linear(tensors, 0, dims.inner, to.inner);
    pack_columns(tensors.take<int32_t>(), dims.inner, 0, to.gelu.clip);
    pack_columns(tensors.take<int64_t>(), dims.inner, int64_t(0), to.gelu.one);
    pack_columns(tensors.take<int32_t>(), dims.inner, 0, to.gelu.unit);
    pack_columns(tensors.take<int32_t>(), dims.inner, 0, to.gelu.drop);
    pack_rescaling(tensors, dims.inner, to.inner_rescaling);
    pack_residual(tensors, dims.width, to.output);
    return true;
}

inline int64_t size(const void* from) {
    const Dims dims(from);
    Walk walk(nullptr);
    take_embeddings(walk, dims);
    for (int64_t layer = 0; layer < dims.layers; ++layer) take_layer(walk, dims, dims.heads(layer));
    return walk.size();
}

inline int pack(const void* from, const void* const* arrays, void* weights) {
    const Dims dims(from);
    Tensors tensors(arrays);
    Walk walk(static_cast<char*>(weights));
    const Embeddings embeddings = take_embeddings(walk, dims);
    pack_rescaling(tensors, dims.width, embeddings.words);
    pack_rescaling(tensors, dims.width, embeddings.types);
    pack_rescaling(tensors, dims.width, embeddings.positions);
    pack_norm(tensors, dims.width, embeddings.norm);
    for (int64_t layer = 0; layer < dims.layers; ++layer) {
        if (!pack_layer(tensors, dims, take_layer(walk, dims, dims.heads(layer)))) return BK_BAD_ARGUMENT;
    }
    return BK_OK;
}

}  // namespace
}  // namespace bertkit

// The C interface of the integer encoder: checks what comes in, and finds the code for the level.
#include "ibert.h"

#include <chrono>
#include <cstring>

#include "cpu.h"
#include "threads.h"

namespace bertkit {
namespace {

constexpr int64_t kMagic = 0x7472656274724249;  // "IBrtbert"
constexpr int64_t kMostLayers = 1 << 16, kWidest = 1 << 20, kMostHeads = 1 << 16;
constexpr int64_t kLongest = 1 << 16;  // so many exponentials of 15 bits add up in 31
constexpr int64_t kEmbeddingTensors = 10, kLayerTensors = 45;

const IBertLevel* level_of(int64_t level) {
    if (level < 0 || level >= BK_LEVELS || !has_level(int(level))) return nullptr;
    switch (level) {
        case BK_SCALAR: return &ibert_scalar;
#if defined(BERTKIT_HAS_AVX2)
        case BK_AVX2: return &ibert_avx2;
#endif
#if defined(BERTKIT_HAS_AVXVNNI)
        case BK_AVXVNNI: return &ibert_avxvnni;
#endif
#if defined(BERTKIT_HAS_AVX512)
        case BK_AVX512: return &ibert_avx512;
#endif
#if defined(BERTKIT_HAS_AMX)
        case BK_AMX: return &ibert_amx;
#endif
        default: return nullptr;
    }
}

thread_local int64_t times_of_last_call[BK_IBERT_PHASES];

bool within(int64_t x, int64_t least, int64_t most) { return least <= x && x <= most; }

IBertDims read_dims(const void* from) {
    IBertDims dims;
    std::memcpy(&dims, from, sizeof dims);
    return dims;
}

// The number of heads of each layer is at `from`, too, for as many layers as `count` says.
bool are_dims(const void* from, int64_t count) {
    constexpr int64_t kFixed = sizeof(IBertDims) / sizeof(int64_t);
    if (count < kFixed) return false;
    const IBertDims dims = read_dims(from);
    if (!within(dims.layers, 0, kMostLayers) || !within(dims.width, 1, kWidest) || !within(dims.head_size, 1, kWidest) ||
        !within(dims.inner, 1, kWidest) || count != kFixed + dims.layers) {
        return false;
    }
    for (int64_t layer = 0; layer < dims.layers; ++layer) {
        int64_t heads;
        std::memcpy(&heads, static_cast<const char*>(from) + sizeof dims + layer * int64_t(sizeof heads), sizeof heads);
        if (!within(heads, 0, kMostHeads) || heads * dims.head_size > kWidest) return false;
    }
    return true;
}

int64_t header_size(int64_t layers) {
    return (int64_t(sizeof(IBertHeader) + sizeof(IBertDims)) + layers * int64_t(sizeof(int64_t)) + 63) / 64 * 64;
}

// Of all tokens that are no padding, in one table.
bool are_rows(const int64_t* ids, const uint8_t* mask, int64_t tokens, int64_t rows) {
    for (int64_t token = 0; token < tokens; ++token) {
        if ((mask == nullptr || mask[token] != 0) && !within(ids[token], 0, rows - 1)) return false;
    }
    return true;
}

int check_packed(const bk_ibert_call& call, IBertHeader& header, IBertDims& dims) {
    constexpr int64_t kLeast = sizeof header + sizeof dims;
    if (call.packed_size < kLeast) return BK_BAD_PACKED;
    const char* packed = static_cast<const char*>(call.packed);
    std::memcpy(&header, packed, sizeof header);
    dims = read_dims(packed + sizeof header);
    if (header.magic != kMagic || header.abi != BK_ABI || header.size != call.packed_size ||
        !within(header.level, 0, BK_LEVELS - 1) || !within(dims.layers, 0, kMostLayers) ||
        call.packed_size < header_size(dims.layers) ||
        !are_dims(packed + sizeof header, int64_t(sizeof dims / sizeof(int64_t)) + dims.layers)) {
        return BK_BAD_PACKED;
    }
    const IBertLevel* level = level_of(header.level);
    if (level == nullptr) return BK_NO_LEVEL;
    return level->size(packed + sizeof header) + header_size(dims.layers) == header.size ? BK_OK : BK_BAD_PACKED;
}

int check_inputs(const bk_ibert_call& call, const IBertDims& dims) {
    if (call.width != dims.width || call.length > kLongest) return BK_BAD_SHAPE;
    if (call.states != 1 && call.states != dims.layers + 1) return BK_BAD_ARGUMENT;
    const int64_t tokens = call.batch * call.length;
    const bool found = are_rows(call.word_ids, call.mask, tokens, call.word_rows) &&
                       are_rows(call.type_ids, call.mask, tokens, call.type_rows) &&
                       are_rows(call.position_ids, call.mask, tokens, call.position_rows);
    return found ? BK_OK : BK_BAD_ID;
}

bool is_complete(const bk_ibert_call& call) {
    if (call.packed == nullptr || call.batch < 0 || call.length < 0) return false;
    const bool has_tokens = call.batch > 0 && call.length > 0;
    return !has_tokens || (call.words != nullptr && call.types != nullptr && call.positions != nullptr &&
                           call.word_ids != nullptr && call.type_ids != nullptr && call.position_ids != nullptr &&
                           call.hidden != nullptr);
}

}  // namespace

int64_t nanoseconds() {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace bertkit

int64_t bk_ibert_pack(int level, const int64_t* dims, int dim_count, const void* const* tensors, int tensor_count, void* packed,
                      int64_t size) {
    using namespace bertkit;
    const IBertLevel* code = level_of(level);
    if (code == nullptr) return BK_NO_LEVEL;
    if (dims == nullptr || (packed != nullptr && tensors == nullptr)) return BK_BAD_ARGUMENT;
    if (!are_dims(dims, dim_count)) return BK_BAD_SHAPE;
    if (tensor_count != kEmbeddingTensors + dims[0] * kLayerTensors) return BK_BAD_TENSORS;
    const IBertHeader header = {kMagic, BK_ABI, level, header_size(dims[0]) + code->size(dims)};
    if (packed == nullptr) return header.size;
    if (size < header.size) return BK_BAD_SIZE;
    char* to = static_cast<char*>(packed);
    use_large_pages(to, header.size);
    std::memset(to, 0, std::size_t(header.size));
    std::memcpy(to, &header, sizeof header);
    std::memcpy(to + sizeof header, dims, std::size_t(dim_count) * sizeof *dims);
    const int code_of_pack = code->pack(dims, tensors, to + header_size(dims[0]));
    return code_of_pack == BK_OK ? header.size : code_of_pack;
}

int bk_ibert_encode(const bk_ibert_call* call) {
    using namespace bertkit;
    if (call == nullptr || !is_complete(*call)) return BK_BAD_ARGUMENT;
    IBertHeader header;
    IBertDims dims;
    int code = check_packed(*call, header, dims);
    if (code == BK_OK) code = check_inputs(*call, dims);
    if (code != BK_OK || call->batch == 0 || call->length == 0) return code;
    const char* packed = static_cast<const char*>(call->packed);
    std::memset(times_of_last_call, 0, sizeof times_of_last_call);
    return level_of(header.level)
        ->encode(*call, packed + sizeof header, packed + header_size(dims.layers), times_of_last_call);
}

void bk_ibert_times(int64_t* nanoseconds) {
    std::memcpy(nanoseconds, bertkit::times_of_last_call, sizeof bertkit::times_of_last_call);
}

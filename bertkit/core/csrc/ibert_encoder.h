// The integer encoder, from ids to hidden states, once for all instruction sets.
//
// Included behind a simd_*.h and a product_*.h. Padding is left out from the start: the tokens of all sequences stand in one
// list of rows. Bytes of activations are kept as their Product wants them, XOR kFlip.
//
// All threads run `Encoder::work`. What belongs to tokens alone (linear layers, GELU, layer norms) is divided in one of two
// ways. With many rows each thread takes some of them from the attention of one layer to that of the next, in chunks that
// stay in its cache, and waits for nobody. With few rows the threads divide the panels of each product.
#pragma once

#include <cstdint>
#include <cstring>

#include "bertkit.h"
#include "ibert_packed.h"
#include "threads.h"

namespace bertkit {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;  // half of a usual second-level cache

constexpr int64_t minimum(int64_t x, int64_t y) { return x < y ? x : y; }
constexpr int64_t maximum(int64_t x, int64_t y) { return x < y ? y : x; }

struct Range {
    int64_t begin, end;

    int64_t size() const { return end - begin; }
};

/// One of `count` parts of a whole that are alike but for `step`, of which they are multiples.
constexpr Range part(int64_t whole, int64_t index, int64_t count, int64_t step = 1) {
    return {minimum(whole, round_up(whole * index / count, step)), minimum(whole, round_up(whole * (index + 1) / count, step))};
}

constexpr int64_t parts_of(int64_t whole, int64_t most) { return (whole + most - 1) / most; }

// -- what happens to the sums of a product ---------------------------------------------------------------------------
// For some rows of a block and kLanes columns; `sums` is where the first of them is.

/// Back to bytes.
struct ToBytes {
    Rescaling rescaling;
    int8_t* out;
    int64_t stride;

    void operator()(const int32_t* sums, Range rows, int64_t column) const {
        const Scales by = scales(rescaling, column);
        for (int64_t row = rows.begin; row < rows.end; ++row, sums += Product::kColumns) {
            store_bytes(out + row * stride + column, narrow(rescale(load(sums), by)), Product::kFlip);
        }
    }
};

/// Through GELU back to bytes.
struct ToGelu {
    Gelu function;
    Rescaling rescaling;
    int8_t* out;
    int64_t stride;

    void operator()(const int32_t* sums, Range rows, int64_t column) const {
        const Gelus at = gelus(function, column);
        const Scales by = scales(rescaling, column);
        for (int64_t row = rows.begin; row < rows.end; ++row, sums += Product::kColumns) {
            store_bytes(out + row * stride + column, narrow(rescale(gelu(load(sums), at), by)), Product::kFlip);
        }
    }
};

/// Added to the stream, for the layer norm.
struct ToStream {
    Rescaling rescaling, identity;
    const int8_t* stream;
    int32_t* out;
    int64_t stride;

    void operator()(const int32_t* sums, Range rows, int64_t column) const {
        const Scales by = scales(rescaling, column), stream_by = scales(identity, column);
        for (int64_t row = rows.begin; row < rows.end; ++row, sums += Product::kColumns) {
            const int64_t at = row * stride + column;
            const Wide total = add(rescale(load(sums), by), rescale(load_bytes(stream + at, Product::kFlip), stream_by));
            store(out + at, narrow(saturate<kNormBits>(total)));
        }
    }
};

/// The sums of a block, on the way through an epilogue.
template <typename Epilogue>
struct Finish {
    const Epilogue* epilogue;
    const int32_t* sums;
    Range rows;
    int64_t first_column;

    /// One of `count` parts.
    [[gnu::noinline]] void operator()(int64_t index, int64_t count) const {
        // As if one group of columns stood below the other: then few parts have to read the parameters of two.
        const int64_t height = rows.size();
        const Range share = part(Product::kColumns / kLanes * height, index, count);
        for (int64_t at = share.begin; at < share.end;) {
            const int64_t column = at / height * kLanes, row = at % height;
            const int64_t end = minimum(height, row + share.end - at);
            (*epilogue)(sums + row * Product::kColumns + column, {rows.begin + row, rows.begin + end}, first_column + column);
            at += end - row;
        }
    }
};

// -- memory ---------------------------------------------------------------------------------------------------------
/// Activations. What products read has room for the rows that complete the last block, and for what is read behind a row.
struct Memory {
    int64_t* tokens;      ///< [rows]: where each row is in [batch, length]
    int64_t* first_rows;  ///< [batch + 1]: where each sequence begins
    int8_t *stream, *query_key_value, *context;
};

/// Activations between the attention of one layer and that of the next: of a chunk of rows.
struct ChunkMemory {
    int32_t* sums;   ///< what layer norms read
    int8_t* middle;  ///< the stream between attention and feed-forward network
    int8_t* inner;
};

/// What a thread needs for attention.
struct AttentionMemory {
    int32_t* scores;
    int8_t* probabilities;
    char *keys, *values;
};

/// Gives the time since it was last asked to what has been done in between.
class Clock {
public:
    explicit Clock(int64_t* times) : times_(times), last_(nanoseconds()) {}

    void mark(bk_ibert_phase phase) {
        const int64_t now = nanoseconds();
        if (times_ != nullptr) times_[phase] += now - last_;
        last_ = now;
    }

private:
    int64_t* times_;
    int64_t last_;
};

/// Threads that share rows.
struct Team {
    const Worker& worker;
    Clock& clock;
    int64_t thread, threads;
    Range rows;
    int64_t chunks;
    ChunkMemory memory;

    void wait() const {
        if (threads > 1) worker.wait();
    }
    Range chunk(int64_t index) const {
        const Range chunk = part(rows.size(), index, chunks, Product::kRowStep);
        return {rows.begin + chunk.begin, rows.begin + chunk.end};
    }
    /// This thread's part of what the team shares.
    Range share(int64_t whole) const { return part(whole, thread, threads); }
};

// -- the encoder ----------------------------------------------------------------------------------------------------
class Encoder {
public:
    Encoder(const bk_ibert_call& call, const Dims& dims, char* weights, int64_t* times)
        : call_(call), dims_(dims), weights_(weights), times_(times) {
        for (int64_t layer = 0; layer < dims.layers; ++layer) {
            attended_ = maximum(attended_, padded(dims.heads(layer) * dims.head_size));
        }
        count_rows();
    }

    int run() {
        Walk size(nullptr);
        place_memory(size);
        char* memory = static_cast<char*>(workspace(size.size()));
        if (memory == nullptr) return BK_NO_MEMORY;
        Walk walk(memory);
        place_memory(walk);
        list_rows();
        bertkit::run(int(threads_), call_.openmp, &enter, this);
        return BK_OK;
    }

private:
    // Parts are rounded up to kRowStep, and their last block to kRows.
    static constexpr int64_t kChunkSlack = Product::kRowStep + Product::kRows;

    // -- rows and memory --
    bool is_token(int64_t token) const { return call_.mask == nullptr || call_.mask[token] != 0; }

    void count_rows() {
        for (int64_t sequence = 0; sequence < call_.batch; ++sequence) {
            int64_t count = 0;
            for (int64_t i = 0; i < call_.length; ++i) count += is_token(sequence * call_.length + i);
            longest_ = maximum(longest_, count);
            rows_ += count;
        }
    }

    void list_rows() const {
        int64_t row = 0;
        for (int64_t sequence = 0; sequence < call_.batch; ++sequence) {
            memory_.first_rows[sequence] = row;
            for (int64_t token = sequence * call_.length; token < (sequence + 1) * call_.length; ++token) {
                if (is_token(token)) memory_.tokens[row++] = token;
            }
        }
        memory_.first_rows[call_.batch] = row;
    }

    // Where to find what; with a walk through no memory, how much there has to be.
    void place_memory(Walk& walk) {
        const int64_t rows = rows_ + Product::kRows;
        memory_ = {walk.take<int64_t>(rows_), walk.take<int64_t>(call_.batch + 1), walk.take<int8_t>(rows * width_),
                   walk.take<int8_t>(rows * 3 * attended_ + kPadding), walk.take<int8_t>(rows * attended_)};
        // However many of the threads there will be, and whether they share chunks or not.
        const int64_t chunk_rows = minimum(rows_, threads_ * most_chunk_rows()) + threads_ * kChunkSlack;
        chunks_ = {walk.take<int32_t>(chunk_rows * width_), walk.take<int8_t>(chunk_rows * width_),
                   walk.take<int8_t>(chunk_rows * inner_width_)};
        const int64_t before = walk.size();
        attention_ = walk.take<char>(0);
        place_attention(walk);
        attention_size_ = walk.size() - before;
        walk.take<char>((threads_ - 1) * attention_size_);
    }

    AttentionMemory place_attention(Walk& walk) const {
        const int64_t scores = Product::kRows * score_stride();
        return {walk.take<int32_t>(scores), walk.take<int8_t>(scores),
                walk.take<char>(parts_of(longest_, Product::kColumns) * Product::panel_bytes(dims_.head_size)),
                walk.take<char>(parts_of(dims_.head_size, Product::kColumns) * Product::panel_bytes(longest_))};
    }

    int64_t score_stride() const { return padded(longest_); }

    // Rows whose activations stay in the cache, but as many as the weights, which are read for each chunk, are worth.
    int64_t most_chunk_rows() const {
        constexpr int64_t kStreams = 3 + sizeof(int32_t);  // before, in the middle, after, and sums
        return maximum(Product::kRowsPerRead, kChunkBytes / (kStreams * width_ + attended_ + inner_width_));
    }

    // From the chunk of one thread to that of the next.
    int64_t chunk_stride(int64_t threads) const { return minimum(rows_ / threads, most_chunk_rows()) + kChunkSlack; }

    // A thread takes rows of its own where there are enough for it to read all weights.
    Team team_of(const Worker& worker, Clock& clock) const {
        if (rows_ < worker.threads * Product::kRowsPerRead) {
            return {worker, clock, worker.thread, worker.threads, {0, rows_}, 1, chunks_};
        }
        const Range rows = part(rows_, worker.thread, worker.threads, Product::kRowStep);
        const int64_t first = worker.thread * chunk_stride(worker.threads);
        return {worker, clock, 0, 1, rows, parts_of(rows.size(), most_chunk_rows()),
                {chunks_.sums + first * width_, chunks_.middle + first * width_, chunks_.inner + first * inner_width_}};
    }

    // -- what each thread does --
    static void enter(const Worker& worker, void* encoder) { static_cast<const Encoder*>(encoder)->work(worker); }

    void work(const Worker& worker) const {
        Product::begin();
        Walk walk(weights_);
        Clock clock(worker.thread == 0 ? times_ : nullptr);
        const Team team = team_of(worker, clock);
        clear_padding(worker);
        embed(take_embeddings(walk, dims_), team);
        for (int64_t index = 0; index < dims_.layers; ++index) {
            const Layer layer = take_layer(walk, dims_, dims_.heads(index));
            team.wait();
            clock.mark(index == 0 ? BK_EMBEDDINGS : BK_OUTPUT_NORM);
            for (int64_t chunk = 0; chunk < team.chunks; ++chunk) project(layer, team, team.chunk(chunk));
            worker.wait();
            clock.mark(BK_QUERY_KEY_VALUE);
            attend(layer, worker);
            worker.wait();
            clock.mark(BK_ATTENTION);
            for (int64_t chunk = 0; chunk < team.chunks; ++chunk) {
                add_attention(layer, team, team.chunk(chunk));
                feed_forward(layer, team, team.chunk(chunk), index + 1);
            }
        }
        Product::end();
        clock.mark(BK_OUTPUT_NORM);
    }

    void clear_padding(const Worker& worker) const {
        const int64_t tokens = call_.batch * call_.length;
        const Range share = part(tokens, worker.thread, worker.threads);
        for (int64_t state = 0; state < call_.states; ++state) {
            for (int64_t token = share.begin; token < share.end; ++token) {
                if (!is_token(token)) std::memset(hidden(state * tokens + token), 0, std::size_t(dims_.width));
            }
        }
    }

    int8_t* hidden(int64_t row) const { return call_.hidden + row * dims_.width; }

    // Hand out a row of a state: 0 after the embeddings, i after layer i.
    void publish(int64_t state, int64_t row) const {
        if (call_.states == 1 && state != dims_.layers) return;
        const int64_t index = call_.states == 1 ? 0 : state;
        const int8_t* from = memory_.stream + row * width_;
        int8_t* to = hidden(index * call_.batch * call_.length + memory_.tokens[row]);
        for (int64_t column = 0; column < dims_.width; ++column) to[column] = int8_t(from[column] ^ Product::kFlip);
    }

    // -- embeddings --
    void embed(const Embeddings& embeddings, const Team& team) const {
        const Range share = team.share(team.rows.size());
        int32_t* sums = team.memory.sums + team.thread * width_;
        for (int64_t row = team.rows.begin + share.begin; row < team.rows.begin + share.end; ++row) {
            add_tables(embeddings, memory_.tokens[row], sums);
            layer_norm(sums, width_, 1, dims_.width, embeddings.norm, Product::kFlip, memory_.stream + row * width_, width_);
            publish(0, row);
        }
    }

    void add_tables(const Embeddings& embeddings, int64_t token, int32_t* sums) const {
        const int8_t* word = call_.words + call_.word_ids[token] * dims_.width;
        const int8_t* type = call_.types + call_.type_ids[token] * dims_.width;
        const int8_t* position = call_.positions + call_.position_ids[token] * dims_.width;
        for (int64_t column = 0; column < dims_.width; column += kLanes) {
            const int count = int(minimum(kLanes, dims_.width - column));
            const Wide parts[] = {rescale(load_first_bytes(word + column, count), scales(embeddings.words, column)),
                                  rescale(load_first_bytes(type + column, count), scales(embeddings.types, column)),
                                  rescale(load_first_bytes(position + column, count), scales(embeddings.positions, column))};
            const Wide two = saturate<kEmbeddingBits>(add(parts[0], parts[1]));
            store(sums + column, narrow(saturate<kEmbeddingBits>(add(two, parts[2]))));
        }
    }

    // -- linear layers --
    /// The threads of a team divide the blocks of all panels. While one panel is used, the next one comes into the cache;
    /// while one block is multiplied, the one before it is finished, where the product has other units for that.
    template <typename Epilogue>
    static void multiply(const Linear& linear, const int8_t* in, int64_t stride, int64_t rows, const Team& team,
                         const Epilogue& epilogue) {
        alignas(64) int32_t sums[2][Product::kRows * Product::kColumns];
        const int64_t blocks = parts_of(rows, Product::kRows), panels = padded(linear.outputs) / Product::kColumns;
        const Range share = team.share(panels * blocks);
        Finish<Epilogue> last{&epilogue, nullptr, {0, 0}, 0};
        for (int64_t item = share.begin; item < share.end; ++item) {
            const int64_t panel = item / blocks;
            const Range block = part(rows, item % blocks, blocks, Product::kRowStep);
            const Range ahead = part(Product::panel_bytes(linear.inputs), item % blocks, blocks);
            Product::multiply<Bytes::kSigned>(in + block.begin * stride, stride, block.size(), linear.panel(panel),
                                              linear.inputs, sums[item % 2], Product::kColumns,
                                              {linear.panel(panel + 1) + ahead.begin, ahead.size()}, last);
            last = {&epilogue, sums[item % 2], block, panel * Product::kColumns};
        }
        last(0, 1);
    }

    void project(const Layer& layer, const Team& team, Range rows) const {
        const Attention& attention = layer.attention;
        const int64_t stride = attention.query_key_value.outputs;
        multiply(attention.query_key_value, memory_.stream + rows.begin * width_, width_, rows.size(), team,
                 ToBytes{attention.rescaling, memory_.query_key_value + rows.begin * stride, stride});
    }

    void add_attention(const Layer& layer, const Team& team, Range rows) const {
        const Residual& output = layer.attention.output;
        const int64_t stride = padded(output.dense.inputs);
        multiply(output.dense, memory_.context + rows.begin * stride, stride, rows.size(), team,
                 ToStream{output.sum, output.identity, memory_.stream + rows.begin * width_, team.memory.sums, width_});
        team.wait();
        team.clock.mark(BK_ATTENTION_OUTPUT);
        const Range share = team.share(rows.size());
        layer_norm(team.memory.sums + share.begin * width_, width_, share.size(), dims_.width, output.norm, Product::kFlip,
                   team.memory.middle + share.begin * width_, width_);
        team.wait();
        team.clock.mark(BK_ATTENTION_NORM);
    }

    void feed_forward(const Layer& layer, const Team& team, Range rows, int64_t state) const {
        const Residual& output = layer.output;
        multiply(layer.inner, team.memory.middle, width_, rows.size(), team,
                 ToGelu{layer.gelu, layer.inner_rescaling, team.memory.inner, inner_width_});
        team.wait();
        team.clock.mark(BK_INNER);
        multiply(output.dense, team.memory.inner, inner_width_, rows.size(), team,
                 ToStream{output.sum, output.identity, team.memory.middle, team.memory.sums, width_});
        team.wait();
        team.clock.mark(BK_OUTPUT);
        const Range share = team.share(rows.size());
        layer_norm(team.memory.sums + share.begin * width_, width_, share.size(), dims_.width, output.norm, Product::kFlip,
                   memory_.stream + (rows.begin + share.begin) * width_, width_);
        for (int64_t row = rows.begin + share.begin; row < rows.begin + share.end; ++row) publish(state, row);
        team.clock.mark(BK_OUTPUT_NORM);
    }

    // -- attention --
    /// Threads divide blocks of rows of all heads of all sequences, by what they cost: rows times keys.
    void attend(const Layer& layer, const Worker& worker) const {
        int64_t whole = 0, cost = 0;
        for (int64_t sequence = 0; sequence < call_.batch; ++sequence) whole += layer.heads * squared_length(sequence);
        const Range share = part(whole, worker.thread, worker.threads);
        Walk walk(attention_ + worker.thread * attention_size_);
        const AttentionMemory memory = place_attention(walk);
        for (int64_t sequence = 0; sequence < call_.batch; ++sequence) {
            for (int64_t head = 0; head < layer.heads; ++head, cost += squared_length(sequence)) {
                attend_head(layer, memory, sequence, head, {share.begin - cost, share.end - cost});
            }
        }
    }

    int64_t length_of(int64_t sequence) const { return memory_.first_rows[sequence + 1] - memory_.first_rows[sequence]; }
    int64_t squared_length(int64_t sequence) const { return length_of(sequence) * length_of(sequence); }

    /// Those blocks of a head whose costs begin within a share.
    void attend_head(const Layer& layer, const AttentionMemory& memory, int64_t sequence, int64_t head, Range share) const {
        const int64_t first = memory_.first_rows[sequence], length = length_of(sequence);
        const int64_t blocks = parts_of(length, Product::kRows);
        bool is_packed = false;
        for (int64_t i = 0; i < blocks; ++i) {
            const Range block = part(length, i, blocks, Product::kRowStep);
            const int64_t begin = block.begin * length;
            if (begin < share.begin || begin >= share.end) continue;
            if (!is_packed) pack_head(layer, memory, head, first, length);
            is_packed = true;
            attend_block(layer, memory, head, {first + block.begin, first + block.end}, length);
        }
    }

    void pack_head(const Layer& layer, const AttentionMemory& memory, int64_t head, int64_t first, int64_t length) const {
        const int64_t attended = layer.attention.query_key_value.outputs / 3, stride = 3 * attended;
        const int8_t* keys = memory_.query_key_value + first * stride + attended + head * dims_.head_size;
        const int8_t* values = keys + attended;
        char* to = memory.keys;
        for (int64_t key = 0; key < length; key += Product::kColumns, to += Product::panel_bytes(dims_.head_size)) {
            Product::pack_rows(keys + key * stride, stride, minimum(length - key, Product::kColumns), dims_.head_size, nullptr,
                               Product::kFlip, to);
        }
        to = memory.values;
        for (int64_t column = 0; column < dims_.head_size; column += Product::kColumns, to += Product::panel_bytes(length)) {
            Product::pack_columns(values + column, stride, minimum(dims_.head_size - column, Product::kColumns), length,
                                  Product::kFlip, to);
        }
    }

    void attend_block(const Layer& layer, const AttentionMemory& memory, int64_t head, Range rows, int64_t length) const {
        const int64_t attended = layer.attention.query_key_value.outputs / 3;
        const int8_t* queries = memory_.query_key_value + rows.begin * 3 * attended + head * dims_.head_size;
        const char* panel = memory.keys;
        for (int64_t key = 0; key < length; key += Product::kColumns, panel += Product::panel_bytes(dims_.head_size)) {
            Product::multiply<Bytes::kSigned>(queries, 3 * attended, rows.size(), panel, dims_.head_size, memory.scores + key,
                                              score_stride(), {panel, 0});
        }
        Softmax constants;
        std::memcpy(&constants, layer.attention.softmax, sizeof constants);
        const Exponential exponential(constants);
        for (int64_t row = 0; row < rows.size(); ++row) {
            softmax(memory.scores + row * score_stride(), length, exponential,
                    reinterpret_cast<uint8_t*>(memory.probabilities + row * score_stride()));
        }
        mix_values(layer, memory, rows.size(), length, memory_.context + rows.begin * attended + head * dims_.head_size);
    }

    void mix_values(const Layer& layer, const AttentionMemory& memory, int64_t rows, int64_t length, int8_t* context) const {
        const int64_t stride = layer.attention.query_key_value.outputs / 3;
        alignas(64) int32_t sums[Product::kRows * Product::kColumns];
        const Scales by = scales(layer.attention.context, 0);
        const char* panel = memory.values;
        for (int64_t first = 0; first < dims_.head_size; first += Product::kColumns, panel += Product::panel_bytes(length)) {
            Product::multiply<Bytes::kUnsigned>(memory.probabilities, score_stride(), rows, panel, length, sums,
                                                Product::kColumns, {panel, 0});
            const int64_t columns = minimum(Product::kColumns, dims_.head_size - first);
            for (int64_t row = 0; row < rows; ++row) {
                for (int64_t column = 0; column < columns; column += kLanes) {
                    const Vector x = narrow(rescale(load(sums + row * Product::kColumns + column), by));
                    store_first_bytes(context + row * stride + first + column, x, Product::kFlip,
                                      int(minimum(kLanes, columns - column)));
                }
            }
        }
    }

    const bk_ibert_call& call_;
    const Dims dims_;
    char* const weights_;
    int64_t* const times_;
    const int64_t width_ = padded(dims_.width), inner_width_ = padded(dims_.inner);
    const int64_t threads_ = minimum(maximum(1, call_.threads), kMostThreads);
    int64_t attended_ = 0, rows_ = 0, longest_ = 0;  // the widest padded attention, tokens, tokens of the longest sequence
    Memory memory_{};
    ChunkMemory chunks_{};
    char* attention_ = nullptr;
    int64_t attention_size_ = 0;
};

inline int encode(const bk_ibert_call& call, const void* dims, const void* weights, int64_t* times) {
    // The layout is one for packing, which writes, and for encoding, which does not.
    return Encoder(call, Dims(dims), const_cast<char*>(static_cast<const char*>(weights)), times).run();
}

}  // namespace
}  // namespace bertkit

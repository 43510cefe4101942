// YOSO's kernels, once for all levels of instructions: what threads do for all groups.
#pragma once

#include "lsh.h"
#include "lsh_pairs.h"
#include "lsh_sum.h"
#include "threads.h"

namespace bertkit {
namespace lsh {
namespace {

/// Hands out numbers from 0 on, each once, to the threads that ask.
class Counter {
public:
    int64_t next() { return __atomic_fetch_add(&count_, 1, __ATOMIC_RELAXED); }

private:
    int64_t count_ = 0;
};

/// Run `job.work(item, memory)` for every item, with `bytes` of memory for each thread. Gives BK_OK, or what one of them gave.
template <typename Job>
int for_each_item(const bk_lsh& of, int64_t items, int64_t bytes, const Job& job) {
    struct Context {
        const Job& job;
        int64_t items, bytes;
        char* memory;
        Counter counter;
        int code;

        static void enter(const Worker& worker, void* context) {
            auto& self = *static_cast<Context*>(context);
            char* memory = self.memory + worker.thread * self.bytes;
            for (int64_t item; (item = self.counter.next()) < self.items;) {
                const int code = self.job.work(item, memory);
                if (code != BK_OK) __atomic_store_n(&self.code, code, __ATOMIC_RELAXED);
            }
        }
    };
    if (items == 0) return BK_OK;
    const int64_t threads = minimum(minimum(of.threads, items), kMostThreads);
    bytes = round_up(bytes, 4096);
    char* memory = static_cast<char*>(workspace(threads * bytes));
    if (memory == nullptr) return BK_NO_MEMORY;
    Context context{job, items, bytes, memory, {}, BK_OK};
    run(int(threads), of.openmp, &Context::enter, &context);
    return context.code;
}

// -- codes ----------------------------------------------------------------------------------------------------------
/// Hash rows, some at a time.
struct HashRows {
    static constexpr int64_t kRows = 16 * kLanes;

    const bk_lsh_hash& call;
    Hash hash{call.of, call.functions, call.side};

    int64_t items_of_group() const { return parts_of(call.side.rows, kRows); }
    int64_t bytes() const { return hash.bytes(); }
    int work(int64_t item, char* memory) const {
        const int64_t group = item / items_of_group(), begin = item % items_of_group() * kRows, hashes = call.of.hashes;
        const uint8_t* mask = hash.mask_of_group(group);
        for (int64_t row = begin; row < minimum(begin + kRows, call.side.rows); row += kLanes) {
            const int64_t count = minimum(kLanes, call.side.rows - row);
            int32_t* codes = call.codes + (group * call.side.rows + row) * hashes;
            write(hash.hash_rows(group, row, count, memory), count, codes);
            for (int64_t i = 0; i < count; ++i) {
                if (!keeps(mask, row + i)) std::memset(codes + i * hashes, 0, std::size_t(hashes) * sizeof *codes);
            }
        }
        return BK_OK;
    }

    void write(const Floats* codes, int64_t count, int32_t* to) const {
        for (int64_t m = 0; m < call.of.hashes; m += kLanes) {
            Floats rows[kLanes];
            std::memcpy(rows, codes + m, sizeof rows);
            transpose(rows);
            for (int64_t i = 0; i < count; ++i) {
                Row<1>{{rows[i]}}.write(reinterpret_cast<float*>(to + i * call.of.hashes + m), call.of.hashes - m);
            }
        }
    }
};

inline int hash(const bk_lsh_hash& call) {
    const HashRows job{call};
    return for_each_item(call.of, call.of.sequences * call.of.heads * job.items_of_group(), job.bytes(), job);
}

// -- sums -----------------------------------------------------------------------------------------------------------
/// Sums over the rows of a group that collide.
template <typename Sums>
struct Groups {
    Hash queries, keys;
    Sums sums;

    int64_t codes_bytes() const { return queries.group_bytes() + keys.group_bytes(); }
    int64_t bytes() const { return codes_bytes() + maximum(sums.bytes(), maximum(queries.bytes(), keys.bytes())); }
    int work(int64_t group, char* memory) const {
        char* rest = memory + codes_bytes();
        const Codes query_codes = queries.group_codes(group, rest, memory);
        const Codes key_codes = keys.group_codes(group, rest, memory + queries.group_bytes());
        if (query_codes.data == nullptr || key_codes.data == nullptr) return BK_BAD_CODE;
        sums.add(group, query_codes, key_codes, rest);
        return BK_OK;
    }
};

template <typename Sums>
int add_groups(const bk_lsh& of, const bk_lsh_functions& functions, const bk_lsh_side& queries, const bk_lsh_side& keys,
               const Sums& sums) {
    const Groups<Sums> job{{of, functions, queries}, {of, functions, keys}, sums};
    return for_each_item(of, of.sequences * of.heads, job.bytes(), job);
}

inline int sum(const bk_lsh_sum& call) {
    const Sum sums{call.of, call.queries, call.keys, call.width, call.values, call.sums};
    return add_groups(call.of, call.functions, call.queries, call.keys, sums);
}

inline int weighted_sum(const bk_lsh_weighted_sum& call) {
    const PairSums sums{call.of, call.queries, call.keys, call.weight_width, call.width, 1.0f, call.query_weights,
                        call.key_weights, {}, call.values, call.sums, nullptr};
    return add_groups(call.of, {}, call.queries, call.keys, sums);
}

struct Gradients {
    Sum of_values;
    PairSums of_both;

    int64_t bytes() const { return maximum(of_values.bytes(), of_both.bytes()); }
    void add(int64_t group, const Codes& query_codes, const Codes& key_codes, char* memory) const {
        of_values.add(group, key_codes, query_codes, memory);
        of_both.add(group, query_codes, key_codes, memory);
    }
};

inline int gradients(const bk_lsh_gradients& call) {
    const bk_lsh_side &queries = call.queries, &keys = call.keys;
    const Gradients sums{{call.of, keys, queries, call.width, call.grads, call.value_grads},
                         {call.of, queries, keys, call.width, call.functions.width, call.scale, call.grads, call.values,
                          queries.vectors, keys.vectors, call.query_grads, call.key_grads}};
    return add_groups(call.of, call.functions, queries, keys, sums);
}

}  // namespace
}  // namespace lsh
}  // namespace bertkit

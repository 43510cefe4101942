/* The C interface of bertkit's native kernels: no framework, no C++, nothing that depends on a version of either.
 *
 * Functions return BK_OK or a negative error code, whose text `bk_error` gives. They may be called from any thread, from
 * several at once, and in a forked process. BK_ABI is raised with every incompatible change: whoever loads the library
 * compares it first.
 */
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define BK_API __declspec(dllexport)
#else
#define BK_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BK_ABI 4

/* Instruction sets, the later the faster. The numbers are stored in packed weights. */
enum bk_level { BK_SCALAR = 0, BK_AVX2 = 1, BK_AVXVNNI = 2, BK_AVX512 = 3, BK_AMX = 4, BK_LEVELS = 5 };

enum bk_code {
    BK_OK = 0,
    BK_NO_LEVEL = -1,     /* this build has no code for the level, or this CPU cannot run it */
    BK_BAD_ARGUMENT = -2, /* a null pointer, a negative count, a number of states that is neither 1 nor layers + 1 */
    BK_BAD_SHAPE = -3,    /* dimensions that belong to no model, or tables that are not as wide as the packed weights */
    BK_BAD_TENSORS = -4,  /* not as many tensors as the dimensions say */
    BK_BAD_PACKED = -5,   /* not packed by this version, damaged, or cut off */
    BK_BAD_SIZE = -6,     /* the buffer is smaller than what was asked to go into it */
    BK_BAD_ID = -7,       /* an id that its table has no row for */
    BK_NO_MEMORY = -8,
    BK_BAD_CODE = -9      /* a code that its table has no bucket for */
};

/* BK_ABI of the library, which may differ from that of the header a caller was written with. */
BK_API int bk_abi(void);

/* What an error code means, in a few words. */
BK_API const char* bk_error(int code);

/* A bit mask, 1 << level, of what this build and this CPU can run. */
BK_API uint32_t bk_levels(void);

/* Why a level cannot run here, e.g. "this CPU has no amx_tile, amx_int8"; NULL where it can. */
BK_API const char* bk_missing(int level);

/* The threads of an OpenMP runtime, by functions that those of GCC, LLVM and Intel have. */
typedef struct bk_openmp {
    void (*parallel)(void (*work)(void*), void* context, unsigned threads, unsigned flags); /* GOMP_parallel */
    int (*thread)(void);                                                                    /* omp_get_thread_num */
    int (*threads)(void);                                                                   /* omp_get_num_threads */
} bk_openmp;

/* ---- I-BERT in integers ---------------------------------------------------------------------------------------- */

/* Arrange the integer weights of an encoder as a level wants to read them.
 *
 * The result is one buffer without pointers, valid at any address and any alignment, on any machine that has the level.
 *
 * dims:     layers, width of the stream, width of a head, width of the feed-forward, then the heads of every layer
 * tensors:  in the order of bertkit.core.ibert.native_tensors
 * packed:   where to put it, or NULL to learn its size
 * size:     bytes at `packed`
 * Returns the size in bytes, or an error code.
 */
BK_API int64_t bk_ibert_pack(int level, const int64_t* dims, int dim_count, const void* const* tensors, int tensor_count,
                             void* packed, int64_t size);

/* Arrays are dense, rows last. */
typedef struct bk_ibert_call {
    const void* packed;           /* of bk_ibert_pack, whose level is the one that runs */
    int64_t packed_size;
    const int8_t* words;          /* [word_rows, width] */
    const int8_t* types;          /* [type_rows, width] */
    const int8_t* positions;      /* [position_rows, width] */
    int64_t word_rows, type_rows, position_rows, width;
    const int64_t* word_ids;      /* [batch, length], like the next two */
    const int64_t* type_ids;
    const int64_t* position_ids;
    const uint8_t* mask;          /* [batch, length], 0 is padding; NULL: there is none */
    int64_t batch, length;
    int64_t states;               /* 1: the last hidden state; layers + 1: those of the embeddings and of every layer */
    int8_t* hidden;               /* [states, batch, length, width] */
    int64_t threads;              /* at most so many, the caller's among them */
    const bk_openmp* openmp;      /* whose threads; NULL: the library's own */
} bk_ibert_call;

/* From ids to the integers of the hidden states. Padding is not computed: its hidden states are 0. */
BK_API int bk_ibert_encode(const bk_ibert_call* call);

/* What an encoder spends its time on, with the epilogue of each product and the wait for other threads. */
enum bk_ibert_phase {
    BK_EMBEDDINGS,
    BK_QUERY_KEY_VALUE,
    BK_ATTENTION,
    BK_ATTENTION_OUTPUT,
    BK_ATTENTION_NORM,
    BK_INNER, /* with GELU */
    BK_OUTPUT,
    BK_OUTPUT_NORM,
    BK_IBERT_PHASES
};

/* Nanoseconds of each phase in the calling thread's last call of bk_ibert_encode: BK_IBERT_PHASES numbers. */
BK_API void bk_ibert_times(int64_t* nanoseconds);

/* ---- YOSO: rows that collide -------------------------------------------------------------------------------------
 *
 * Two rows collide under a hash function that gives both the same code. Rows belong to groups, one for each head of each
 * sequence: group = sequence * heads + head. Vectors are [groups, rows, width], 32-bit floats; codes [groups, rows, hashes],
 * from 0 to 2^code_bits - 1; masks [sequences, rows], where 0 drops a row, or NULL, which drops none. Arrays are dense, but for
 * vectors that are read.
 */

/* Vectors that are read. The numbers of one are dense, but a model has the heads of a row side by side: so many numbers lie
 * from a sequence, a head and a row to the next. All 0: the array is dense. */
typedef struct bk_lsh_vectors {
    const float* data;
    int64_t sequence, head, row;
} bk_lsh_vectors;

/* What all calls have. */
typedef struct bk_lsh {
    int64_t level;           /* bk_level; the highest that is no faster serves where there is no code for this one */
    int64_t threads;         /* at most so many, the caller's among them */
    const bk_openmp* openmp; /* whose threads; NULL: the library's own */
    int64_t sequences, heads, hashes, code_bits;
} bk_lsh;

/* Hash functions of vectors of `width` numbers. The bits of codes are the signs of H D2 H D1 H D0 x, with Hadamard's matrix H
 * and diagonals D of signs; or, without parts, of dot products. */
typedef struct bk_lsh_functions {
    int64_t width;
    int64_t parts, size;  /* transforms of each vector, and the length of each, a power of two from 32 on; or 0 and 0 */
    const float* numbers; /* [heads, 3, parts, size], 1 and -1; without parts [heads, width, hashes * code_bits] */
} bk_lsh_functions;

/* One side of a sum. */
typedef struct bk_lsh_side {
    int64_t rows;
    const uint8_t* mask;
    const int32_t* codes; /* NULL: those of the vectors */
    bk_lsh_vectors vectors;
} bk_lsh_side;

/* The codes of vectors. */
typedef struct bk_lsh_hash {
    bk_lsh of;
    bk_lsh_functions functions;
    bk_lsh_side side; /* a row that is dropped has code 0 */
    int32_t* codes;
} bk_lsh_hash;

BK_API int bk_lsh_run_hash(const bk_lsh_hash* call);

/* sums[i] = mean over the hashes of the sum of values[j] over all keys j that collide with query i; 0 for a dropped query. */
typedef struct bk_lsh_sum {
    bk_lsh of;
    bk_lsh_functions functions; /* of sides without codes */
    bk_lsh_side queries, keys;
    int64_t width;
    bk_lsh_vectors values; /* of the keys */
    float* sums;           /* of the queries */
} bk_lsh_sum;

BK_API int bk_lsh_run_sum(const bk_lsh_sum* call);

/* The same, each value times the dot product of the weights of query and key. */
typedef struct bk_lsh_weighted_sum {
    bk_lsh of;
    bk_lsh_side queries, keys; /* with codes */
    int64_t weight_width, width;
    bk_lsh_vectors query_weights, key_weights, values;
    float* sums;
} bk_lsh_weighted_sum;

BK_API int bk_lsh_run_weighted_sum(const bk_lsh_weighted_sum* call);

/* With r[i][j], the share of hashes under which i and j collide, and w[i][j] = scale * r[i][j] * (grads[i] . values[j]):
 * query_grads = w keys, key_grads = w^T queries, value_grads = r^T grads. */
typedef struct bk_lsh_gradients {
    bk_lsh of;
    bk_lsh_functions functions;
    bk_lsh_side queries, keys; /* with vectors, of the functions' width */
    int64_t width;             /* of values and grads */
    float scale;
    bk_lsh_vectors values, grads;
    float *query_grads, *key_grads, *value_grads;
} bk_lsh_gradients;

BK_API int bk_lsh_run_gradients(const bk_lsh_gradients* call);

#ifdef __cplusplus
}
#endif

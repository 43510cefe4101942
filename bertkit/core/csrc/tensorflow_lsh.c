/* YOSO's kernels: bk_lsh_run_*. Vectors are [sequences, heads, rows, width], codes [sequences, heads, rows, hashes], masks
 * [sequences, rows] or [0, 0], functions signs of transforms, [heads, 3, parts, size], or projections, [heads, 1, width, bits]. */
#include "tensorflow.h"

enum { LEVEL, THREADS, CODE_BITS, HASHES };
#define ATTRIBUTES {"level", "threads", "code_bits"}
#define HASH_ATTRIBUTES {"level", "threads", "code_bits", "hashes"}

static int64_t dim(const TF_Tensor* tensor, int axis) { return TF_Dim(tensor, axis); }

static bk_lsh common(const int64_t* attributes, const TF_Tensor* tensor, int64_t hashes) {
    return (bk_lsh){.level = attributes[LEVEL], .threads = attributes[THREADS], .sequences = dim(tensor, 0),
                    .heads = dim(tensor, 1), .hashes = hashes, .code_bits = attributes[CODE_BITS]};
}

/* An empty mask is none. */
static bool is_mask(const TF_Tensor* mask, int64_t sequences, int64_t rows) {
    static const int64_t none[] = {0, 0};
    const int64_t dims[] = {sequences, rows};
    return has_dims(mask, none, 2) || has_dims(mask, dims, 2);
}
static const uint8_t* mask_data(const TF_Tensor* mask) { return TF_TensorByteSize(mask) == 0 ? NULL : TF_TensorData(mask); }

static bk_lsh_side side_of(const TF_Tensor* mask, const TF_Tensor* codes) {
    return (bk_lsh_side){.rows = dim(codes, 2), .mask = mask_data(mask), .codes = TF_TensorData(codes)};
}

/* A side without codes. */
static bk_lsh_side hashed(const TF_Tensor* mask, const TF_Tensor* vectors) {
    return (bk_lsh_side){.rows = dim(vectors, 2), .mask = mask_data(mask), .vectors = {TF_TensorData(vectors)}};
}

static bk_lsh_functions functions_of(const TF_Tensor* numbers, int64_t width) {
    bk_lsh_functions functions = {.width = width, .numbers = TF_TensorData(numbers)};
    if (dim(numbers, 1) == 3) {
        functions.parts = dim(numbers, 2);
        functions.size = dim(numbers, 3);
    }
    return functions;
}
static bool are_functions(const TF_Tensor* numbers, const bk_lsh* of, int64_t width) {
    const int64_t signs[] = {of->heads, 3, -1, -1}, projections[] = {of->heads, 1, width, of->hashes * of->code_bits};
    return has_dims(numbers, signs, 4) || has_dims(numbers, projections, 4);
}

/* Whether mask and vectors are of so many sequences and heads, and so wide. */
static bool are_vectors(const bk_lsh* of, const TF_Tensor* mask, const TF_Tensor* vectors, int64_t rows, int64_t width) {
    const int64_t dims[] = {of->sequences, of->heads, rows, width};
    return has_dims(vectors, dims, 4) && is_mask(mask, of->sequences, dim(vectors, 2));
}

/* Whether the first inputs of an operation belong together: queries, keys, values, masks of queries and keys, functions. */
static bool are_attended(const bk_lsh* of, TF_Tensor* const* inputs) {
    const TF_Tensor *queries = inputs[0], *keys = inputs[1], *values = inputs[2], *query_mask = inputs[3], *key_mask = inputs[4];
    const int64_t width = dim(queries, 3);
    return are_vectors(of, query_mask, queries, -1, width) && are_vectors(of, key_mask, keys, -1, width) &&
           are_vectors(of, key_mask, values, dim(keys, 2), -1) && are_functions(inputs[5], of, width);
}

/* Whether masks and codes belong together; vectors may be NULL. */
static bool fit(const bk_lsh* of, const TF_Tensor* mask, const TF_Tensor* codes, const TF_Tensor* vectors, int64_t width) {
    const int64_t code_dims[] = {of->sequences, of->heads, -1, of->hashes};
    const int64_t dims[] = {of->sequences, of->heads, dim(codes, 2), width};
    return has_dims(codes, code_dims, 4) && is_mask(mask, of->sequences, dim(codes, 2)) &&
           (vectors == NULL || has_dims(vectors, dims, 4));
}

static void refuse_shapes(TF_Status* status, const char* operation) {
    refuse(status, "%s: the shapes of the inputs do not fit together", operation);
}

/* Output `index`, as many rows as `like` has, of `width`. */
static float* vectors_like(TF_OpKernelContext* context, int index, const TF_Tensor* like, int64_t width, TF_Tensor** tensor,
                           TF_Status* status) {
    const int64_t dims[] = {dim(like, 0), dim(like, 1), dim(like, 2), width};
    if (TF_GetCode(status) == TF_OK) *tensor = allocate(context, index, TF_FLOAT, dims, 4, status);
    return TF_GetCode(status) == TF_OK ? TF_TensorData(*tensor) : NULL;
}

static void unknown_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
    TF_ShapeInferenceContextSetUnknownShape(context, status); /* the caller in Python says more */
}

/* ---- codes -------------------------------------------------------------------------------------------------------- */

static void hash(TF_OpKernelContext* context, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status* status) {
    const TF_Tensor *vectors = inputs[0], *mask = inputs[1], *functions = inputs[2];
    bk_lsh_hash call = {.of = common(attributes, vectors, attributes[HASHES]),
                        .functions = functions_of(functions, dim(vectors, 3)), .side = hashed(mask, vectors)};
    if (!are_vectors(&call.of, mask, vectors, -1, -1) || !are_functions(functions, &call.of, call.functions.width)) {
        refuse_shapes(status, "BertkitLshHash");
        return;
    }
    const int64_t dims[] = {call.of.sequences, call.of.heads, call.side.rows, call.of.hashes};
    TF_Tensor* codes = allocate(context, 0, TF_INT32, dims, 4, status);
    if (TF_GetCode(status) == TF_OK) {
        call.codes = TF_TensorData(codes);
        report_code(status, "BertkitLshHash", bk_lsh_run_hash(&call));
    }
    if (codes != NULL) TF_DeleteTensor(codes);
}

OPERATION(lsh_hash, "BertkitLshHash", {{"vectors: float", 4}, {"mask: uint8", 2}, {"functions: float", 4}}, HASH_ATTRIBUTES,
          {"codes: int32"}, hash, unknown_shapes)

/* ---- sums --------------------------------------------------------------------------------------------------------- */

/* Output the sums of a call, as many rows as there are queries; `fits` says whether what it has belongs together. */
static void run_sum(TF_OpKernelContext* context, const char* operation, bk_lsh_sum call, bool fits, const TF_Tensor* queries,
                    TF_Status* status) {
    if (!fits) {
        refuse_shapes(status, operation);
        return;
    }
    TF_Tensor* sums = NULL;
    call.sums = vectors_like(context, 0, queries, call.width, &sums, status);
    if (TF_GetCode(status) == TF_OK) report_code(status, operation, bk_lsh_run_sum(&call));
    if (sums != NULL) TF_DeleteTensor(sums);
}

static void sum(TF_OpKernelContext* context, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status* status) {
    const TF_Tensor *query_codes = inputs[1], *key_codes = inputs[3], *values = inputs[4];
    bk_lsh_sum call = {.of = common(attributes, query_codes, dim(query_codes, 3)), .queries = side_of(inputs[0], query_codes),
                       .keys = side_of(inputs[2], key_codes), .width = dim(values, 3), .values = {TF_TensorData(values)}};
    const bool fits = fit(&call.of, inputs[0], query_codes, NULL, 0) && fit(&call.of, inputs[2], key_codes, values, call.width);
    run_sum(context, "BertkitLshSum", call, fits, query_codes, status);
}

OPERATION(lsh_cumulation, "BertkitLshSum",
          {{"query_mask: uint8", 2}, {"query_codes: int32", 4}, {"key_mask: uint8", 2}, {"key_codes: int32", 4}, {"values: float", 4}},
          ATTRIBUTES, {"sums: float"}, sum, unknown_shapes)

static void sampling(TF_OpKernelContext* context, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status* status) {
    const TF_Tensor *queries = inputs[0], *keys = inputs[1], *values = inputs[2], *query_mask = inputs[3], *key_mask = inputs[4];
    bk_lsh_sum call = {.of = common(attributes, queries, attributes[HASHES]),
                       .functions = functions_of(inputs[5], dim(queries, 3)), .queries = hashed(query_mask, queries),
                       .keys = hashed(key_mask, keys), .width = dim(values, 3), .values = {TF_TensorData(values)}};
    run_sum(context, "BertkitLshSampling", call, are_attended(&call.of, inputs), queries, status);
}

OPERATION(lsh_sampling, "BertkitLshSampling",
          {{"queries: float", 4}, {"keys: float", 4}, {"values: float", 4}, {"query_mask: uint8", 2}, {"key_mask: uint8", 2},
           {"functions: float", 4}},
          HASH_ATTRIBUTES, {"sums: float"}, sampling, unknown_shapes)

static void weighted_sum(TF_OpKernelContext* context, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status* status) {
    const TF_Tensor *query_codes = inputs[1], *query_weights = inputs[2], *key_codes = inputs[4], *key_weights = inputs[5];
    const TF_Tensor* values = inputs[6];
    bk_lsh_weighted_sum call = {.of = common(attributes, query_codes, dim(query_codes, 3)),
                                .queries = side_of(inputs[0], query_codes), .keys = side_of(inputs[3], key_codes),
                                .weight_width = dim(query_weights, 3), .width = dim(values, 3),
                                .query_weights = {TF_TensorData(query_weights)}, .key_weights = {TF_TensorData(key_weights)},
                                .values = {TF_TensorData(values)}};
    if (!fit(&call.of, inputs[0], query_codes, query_weights, call.weight_width) ||
        !fit(&call.of, inputs[3], key_codes, key_weights, call.weight_width) ||
        !fit(&call.of, inputs[3], key_codes, values, call.width)) {
        refuse_shapes(status, "BertkitLshWeightedSum");
        return;
    }
    TF_Tensor* sums = NULL;
    call.sums = vectors_like(context, 0, query_codes, call.width, &sums, status);
    if (TF_GetCode(status) == TF_OK) report_code(status, "BertkitLshWeightedSum", bk_lsh_run_weighted_sum(&call));
    if (sums != NULL) TF_DeleteTensor(sums);
}

OPERATION(lsh_weighted_cumulation, "BertkitLshWeightedSum",
          {{"query_mask: uint8", 2}, {"query_codes: int32", 4}, {"query_weights: float", 4}, {"key_mask: uint8", 2},
           {"key_codes: int32", 4}, {"key_weights: float", 4}, {"values: float", 4}},
          ATTRIBUTES, {"sums: float"}, weighted_sum, unknown_shapes)

/* ---- gradients ---------------------------------------------------------------------------------------------------- */

static void gradients(TF_OpKernelContext* context, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status* status) {
    const TF_Tensor *queries = inputs[0], *keys = inputs[1], *values = inputs[2], *query_mask = inputs[3], *key_mask = inputs[4];
    const TF_Tensor* grads = inputs[6];
    bk_lsh_gradients call = {.of = common(attributes, queries, attributes[HASHES]),
                             .functions = functions_of(inputs[5], dim(queries, 3)), .queries = hashed(query_mask, queries),
                             .keys = hashed(key_mask, keys), .width = dim(values, 3),
                             .scale = (float)attributes[CODE_BITS] / 2, .values = {TF_TensorData(values)},
                             .grads = {TF_TensorData(grads)}};
    if (!are_attended(&call.of, inputs) || !are_vectors(&call.of, query_mask, grads, call.queries.rows, call.width)) {
        refuse_shapes(status, "BertkitLshGradients");
        return;
    }
    TF_Tensor* outputs[3] = {NULL};
    call.query_grads = vectors_like(context, 0, queries, call.functions.width, &outputs[0], status);
    call.key_grads = vectors_like(context, 1, keys, call.functions.width, &outputs[1], status);
    call.value_grads = vectors_like(context, 2, values, call.width, &outputs[2], status);
    if (TF_GetCode(status) == TF_OK) report_code(status, "BertkitLshGradients", bk_lsh_run_gradients(&call));
    for (int i = 0; i < 3; ++i) {
        if (outputs[i] != NULL) TF_DeleteTensor(outputs[i]);
    }
}

OPERATION(lsh_sampling_gradients, "BertkitLshGradients",
          {{"queries: float", 4}, {"keys: float", 4}, {"values: float", 4}, {"query_mask: uint8", 2}, {"key_mask: uint8", 2},
           {"functions: float", 4}, {"grads: float", 4}},
          HASH_ATTRIBUTES, {"query_grads: float", "key_grads: float", "value_grads: float"}, gradients, unknown_shapes)

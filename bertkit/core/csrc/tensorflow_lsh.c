/* YOSO's kernels: bk_lsh_run_*. Vectors are [sequences, heads, rows, width], codes [sequences, heads, rows, hashes], masks
 * [sequences, rows] or [0, 0]. */
#include "tensorflow.h"

enum { LEVEL, THREADS, CODE_BITS, HASHES };
#define ATTRIBUTES {"level", "threads", "code_bits"}

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
    const TF_Tensor *vectors = inputs[0], *mask = inputs[1], *signs = inputs[2];
    const int64_t sign_dims[] = {dim(vectors, 1), 3, -1, -1};
    if (!has_dims(signs, sign_dims, 4) || !is_mask(mask, dim(vectors, 0), dim(vectors, 2))) {
        refuse_shapes(status, "BertkitLshHash");
        return;
    }
    bk_lsh_hash call = {.of = common(attributes, vectors, attributes[HASHES]), .rows = dim(vectors, 2),
                        .width = dim(vectors, 3), .vectors = TF_TensorData(vectors), .mask = mask_data(mask),
                        .parts = dim(signs, 2), .size = dim(signs, 3), .signs = TF_TensorData(signs)};
    const int64_t dims[] = {call.of.sequences, call.of.heads, call.rows, call.of.hashes};
    TF_Tensor* codes = allocate(context, 0, TF_INT32, dims, 4, status);
    if (TF_GetCode(status) == TF_OK) {
        call.codes = TF_TensorData(codes);
        report_code(status, "BertkitLshHash", bk_lsh_run_hash(&call));
    }
    if (codes != NULL) TF_DeleteTensor(codes);
}

OPERATION(lsh_fast_hash, "BertkitLshHash", {{"vectors: float", 4}, {"mask: uint8", 2}, {"signs: float", 4}},
          {"level", "threads", "code_bits", "hashes"}, {"codes: int32"}, hash, unknown_shapes)

/* ---- sums --------------------------------------------------------------------------------------------------------- */

static void sum(TF_OpKernelContext* context, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status* status) {
    const TF_Tensor *query_codes = inputs[1], *key_codes = inputs[3], *values = inputs[4];
    bk_lsh_sum call = {.of = common(attributes, query_codes, dim(query_codes, 3)), .queries = side_of(inputs[0], query_codes),
                       .keys = side_of(inputs[2], key_codes), .width = dim(values, 3), .values = TF_TensorData(values)};
    if (!fit(&call.of, inputs[0], query_codes, NULL, 0) || !fit(&call.of, inputs[2], key_codes, values, call.width)) {
        refuse_shapes(status, "BertkitLshSum");
        return;
    }
    TF_Tensor* sums = NULL;
    call.sums = vectors_like(context, 0, query_codes, call.width, &sums, status);
    if (TF_GetCode(status) == TF_OK) report_code(status, "BertkitLshSum", bk_lsh_run_sum(&call));
    if (sums != NULL) TF_DeleteTensor(sums);
}

OPERATION(lsh_cumulation, "BertkitLshSum",
          {{"query_mask: uint8", 2}, {"query_codes: int32", 4}, {"key_mask: uint8", 2}, {"key_codes: int32", 4}, {"values: float", 4}},
          ATTRIBUTES, {"sums: float"}, sum, unknown_shapes)

static void weighted_sum(TF_OpKernelContext* context, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status* status) {
    const TF_Tensor *query_codes = inputs[1], *query_weights = inputs[2], *key_codes = inputs[4], *key_weights = inputs[5];
    const TF_Tensor* values = inputs[6];
    bk_lsh_weighted_sum call = {.of = common(attributes, query_codes, dim(query_codes, 3)),
                                .queries = side_of(inputs[0], query_codes), .keys = side_of(inputs[3], key_codes),
                                .weight_width = dim(query_weights, 3), .width = dim(values, 3),
                                .query_weights = TF_TensorData(query_weights), .key_weights = TF_TensorData(key_weights),
                                .values = TF_TensorData(values)};
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
    const TF_Tensor *query_codes = inputs[5], *key_codes = inputs[6], *grads = inputs[7];
    bk_lsh_gradients call = {.of = common(attributes, query_codes, dim(query_codes, 3)),
                             .query_side = side_of(query_mask, query_codes), .key_side = side_of(key_mask, key_codes),
                             .width = dim(queries, 3), .value_width = dim(values, 3),
                             .scale = (float)attributes[CODE_BITS] / 2, .queries = TF_TensorData(queries),
                             .keys = TF_TensorData(keys), .values = TF_TensorData(values), .grads = TF_TensorData(grads)};
    if (!fit(&call.of, query_mask, query_codes, queries, call.width) || !fit(&call.of, key_mask, key_codes, keys, call.width) ||
        !fit(&call.of, query_mask, query_codes, grads, call.value_width) ||
        !fit(&call.of, key_mask, key_codes, values, call.value_width)) {
        refuse_shapes(status, "BertkitLshGradients");
        return;
    }
    TF_Tensor* outputs[3] = {NULL};
    call.query_grads = vectors_like(context, 0, queries, call.width, &outputs[0], status);
    call.key_grads = vectors_like(context, 1, keys, call.width, &outputs[1], status);
    call.value_grads = vectors_like(context, 2, values, call.value_width, &outputs[2], status);
    if (TF_GetCode(status) == TF_OK) report_code(status, "BertkitLshGradients", bk_lsh_run_gradients(&call));
    for (int i = 0; i < 3; ++i) {
        if (outputs[i] != NULL) TF_DeleteTensor(outputs[i]);
    }
}

OPERATION(lsh_sampling_gradients, "BertkitLshGradients",
          {{"queries: float", 4}, {"keys: float", 4}, {"values: float", 4}, {"query_mask: uint8", 2}, {"key_mask: uint8", 2},
           {"query_codes: int32", 4}, {"key_codes: int32", 4}, {"grads: float", 4}},
          ATTRIBUTES, {"query_grads: float", "key_grads: float", "value_grads: float"}, gradients, unknown_shapes)

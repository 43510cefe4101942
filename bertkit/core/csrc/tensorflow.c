/* The kernels as TensorFlow operations, registered when TensorFlow loads this library.
 *
 * TensorFlow's plain C interface is declared here as far as it is used: its names and types are the same in every version,
 * so one library fits all of them and is built where there is no TensorFlow.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "bertkit.h"

/* ---- what is used of TensorFlow --------------------------------------------------------------------------------- */

enum { TF_OK = 0, TF_INVALID_ARGUMENT = 3, TF_RESOURCE_EXHAUSTED = 8 };
enum { TF_INT8 = 6 };

typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_ShapeHandle TF_ShapeHandle;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_KernelBuilder TF_KernelBuilder;
typedef struct TF_OpKernelConstruction TF_OpKernelConstruction;
typedef struct TF_OpKernelContext TF_OpKernelContext;

TF_Status* TF_NewStatus(void);
void TF_DeleteStatus(TF_Status*);
void TF_SetStatus(TF_Status*, int code, const char* message);
int TF_GetCode(const TF_Status*);
const char* TF_Message(const TF_Status*);

TF_OpDefinitionBuilder* TF_NewOpDefinitionBuilder(const char* name);
void TF_OpDefinitionBuilderAddInput(TF_OpDefinitionBuilder*, const char*);
void TF_OpDefinitionBuilderAddOutput(TF_OpDefinitionBuilder*, const char*);
void TF_OpDefinitionBuilderAddAttr(TF_OpDefinitionBuilder*, const char*);
void TF_OpDefinitionBuilderSetShapeInferenceFunction(TF_OpDefinitionBuilder*,
                                                     void (*)(TF_ShapeInferenceContext*, TF_Status*));
void TF_RegisterOpDefinition(TF_OpDefinitionBuilder*, TF_Status*);

TF_ShapeHandle* TF_NewShapeHandle(void);
void TF_DeleteShapeHandle(TF_ShapeHandle*);
TF_ShapeHandle* TF_ShapeInferenceContextVectorFromSize(TF_ShapeInferenceContext*, size_t);
void TF_ShapeInferenceContextGetInput(TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*);
void TF_ShapeInferenceContextSetOutput(TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*);
void TF_ShapeInferenceContextWithRank(TF_ShapeInferenceContext*, TF_ShapeHandle*, int64_t, TF_ShapeHandle*, TF_Status*);
void TF_ShapeInferenceContextSubshape(TF_ShapeInferenceContext*, TF_ShapeHandle*, int64_t begin, int64_t end,
                                      TF_ShapeHandle*, TF_Status*);
void TF_ShapeInferenceContextConcatenateShapes(TF_ShapeInferenceContext*, TF_ShapeHandle*, TF_ShapeHandle*,
                                               TF_ShapeHandle*, TF_Status*);

TF_KernelBuilder* TF_NewKernelBuilder(const char* op, const char* device, void* (*create)(TF_OpKernelConstruction*),
                                      void (*compute)(void*, TF_OpKernelContext*), void (*destroy)(void*));
void TF_RegisterKernelBuilder(const char* name, TF_KernelBuilder*, TF_Status*);
void TF_OpKernelConstruction_GetAttrInt64(TF_OpKernelConstruction*, const char*, int64_t*, TF_Status*);
void TF_OpKernelConstruction_Failure(TF_OpKernelConstruction*, TF_Status*);
void TF_OpKernelContext_Failure(TF_OpKernelContext*, TF_Status*);
void TF_GetInput(TF_OpKernelContext*, int, TF_Tensor**, TF_Status*);
TF_Tensor* TF_AllocateOutput(TF_OpKernelContext*, int, int type, const int64_t* dims, int count, size_t bytes, TF_Status*);

void TF_DeleteTensor(TF_Tensor*);
void* TF_TensorData(const TF_Tensor*);
size_t TF_TensorByteSize(const TF_Tensor*);
int TF_NumDims(const TF_Tensor*);
int64_t TF_Dim(const TF_Tensor*, int);

/* ---- BertkitIbertEncode: bk_ibert_encode ------------------------------------------------------------------------- */

enum { PACKED, WORDS, TYPES, POSITIONS, WORD_IDS, TYPE_IDS, POSITION_IDS, MASK, INPUTS };

static const struct Input {
    const char* name;
    const char* declared;
    int rank;
} ENCODE_INPUTS[INPUTS] = {
    {"packed", "packed: uint8", 1},
    {"words", "words: int8", 2},
    {"types", "types: int8", 2},
    {"positions", "positions: int8", 2},
    {"word_ids", "word_ids: int64", 2},
    {"type_ids", "type_ids: int64", 2},
    {"position_ids", "position_ids: int64", 2},
    {"mask", "mask: uint8", 2}, /* [0, 0]: there is none */
};

typedef struct {
    int64_t states, threads;
} EncodeKernel;

static void* encode_create(TF_OpKernelConstruction* construction) {
    TF_Status* status = TF_NewStatus();
    EncodeKernel* kernel = malloc(sizeof *kernel);
    if (kernel == NULL) {
        TF_SetStatus(status, TF_RESOURCE_EXHAUSTED, bk_error(BK_NO_MEMORY));
    } else {
        TF_OpKernelConstruction_GetAttrInt64(construction, "states", &kernel->states, status);
        if (TF_GetCode(status) == TF_OK) {
            TF_OpKernelConstruction_GetAttrInt64(construction, "threads", &kernel->threads, status);
        }
    }
    if (TF_GetCode(status) != TF_OK) TF_OpKernelConstruction_Failure(construction, status);
    TF_DeleteStatus(status);
    return kernel;
}

static void encode_destroy(void* kernel) { free(kernel); }

static bool has_shape(const TF_Tensor* tensor, int64_t rows, int64_t columns) {
    return TF_Dim(tensor, 0) == rows && TF_Dim(tensor, 1) == columns;
}

/* Says what is wrong with the shapes; with the right ones fills in the call. */
static void encode_check(TF_Tensor* const* inputs, bk_ibert_call* call, TF_Status* status) {
    char message[160];
    for (int i = 0; i < INPUTS; ++i) {
        if (TF_NumDims(inputs[i]) == ENCODE_INPUTS[i].rank) continue;
        snprintf(message, sizeof message, "BertkitIbertEncode: %s has %d axes, expected %d", ENCODE_INPUTS[i].name,
                 TF_NumDims(inputs[i]), ENCODE_INPUTS[i].rank);
        TF_SetStatus(status, TF_INVALID_ARGUMENT, message);
        return;
    }
    const int64_t batch = TF_Dim(inputs[WORD_IDS], 0), length = TF_Dim(inputs[WORD_IDS], 1);
    const bool masked = !has_shape(inputs[MASK], 0, 0);
    for (int i = TYPE_IDS; i <= (masked ? MASK : POSITION_IDS); ++i) {
        if (has_shape(inputs[i], batch, length)) continue;
        snprintf(message, sizeof message,
                 "BertkitIbertEncode: %s has shape [%" PRId64 ", %" PRId64 "], expected that of word_ids, [%" PRId64
                 ", %" PRId64 "]",
                 ENCODE_INPUTS[i].name, TF_Dim(inputs[i], 0), TF_Dim(inputs[i], 1), batch, length);
        TF_SetStatus(status, TF_INVALID_ARGUMENT, message);
        return;
    }
    const int64_t width = TF_Dim(inputs[WORDS], 1);
    for (int i = TYPES; i <= POSITIONS; ++i) {
        if (TF_Dim(inputs[i], 1) == width) continue;
        snprintf(message, sizeof message,
                 "BertkitIbertEncode: rows of %s hold %" PRId64 " numbers, expected %" PRId64 " as those of words",
                 ENCODE_INPUTS[i].name, TF_Dim(inputs[i], 1), width);
        TF_SetStatus(status, TF_INVALID_ARGUMENT, message);
        return;
    }
    call->packed = TF_TensorData(inputs[PACKED]);
    call->packed_size = (int64_t)TF_TensorByteSize(inputs[PACKED]);
    call->words = TF_TensorData(inputs[WORDS]);
    call->types = TF_TensorData(inputs[TYPES]);
    call->positions = TF_TensorData(inputs[POSITIONS]);
    call->word_rows = TF_Dim(inputs[WORDS], 0);
    call->type_rows = TF_Dim(inputs[TYPES], 0);
    call->position_rows = TF_Dim(inputs[POSITIONS], 0);
    call->width = width;
    call->word_ids = TF_TensorData(inputs[WORD_IDS]);
    call->type_ids = TF_TensorData(inputs[TYPE_IDS]);
    call->position_ids = TF_TensorData(inputs[POSITION_IDS]);
    call->mask = masked ? TF_TensorData(inputs[MASK]) : NULL;
    call->batch = batch;
    call->length = length;
}

static void encode(const EncodeKernel* kernel, TF_OpKernelContext* context, TF_Tensor* const* inputs, TF_Status* status) {
    bk_ibert_call call = {.states = kernel->states, .threads = kernel->threads};
    encode_check(inputs, &call, status);
    if (TF_GetCode(status) != TF_OK) return;
    const int64_t dims[] = {call.states, call.batch, call.length, call.width};
    const size_t bytes = (size_t)(call.states * call.batch * call.length * call.width);
    TF_Tensor* hidden = TF_AllocateOutput(context, 0, TF_INT8, dims, 4, bytes, status);
    if (TF_GetCode(status) == TF_OK) {
        call.hidden = TF_TensorData(hidden);
        const int code = bk_ibert_encode(&call);
        if (code != BK_OK) {
            char message[160];
            snprintf(message, sizeof message, "BertkitIbertEncode: %s", bk_error(code));
            TF_SetStatus(status, code == BK_NO_MEMORY ? TF_RESOURCE_EXHAUSTED : TF_INVALID_ARGUMENT, message);
        }
    }
    if (hidden != NULL) TF_DeleteTensor(hidden);
}

static void encode_compute(void* kernel, TF_OpKernelContext* context) {
    TF_Status* status = TF_NewStatus();
    TF_Tensor* inputs[INPUTS] = {NULL};
    for (int i = 0; i < INPUTS && TF_GetCode(status) == TF_OK; ++i) TF_GetInput(context, i, &inputs[i], status);
    if (TF_GetCode(status) == TF_OK) encode(kernel, context, inputs, status);
    if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
    for (int i = 0; i < INPUTS; ++i) {
        if (inputs[i] != NULL) TF_DeleteTensor(inputs[i]);
    }
    TF_DeleteStatus(status);
}

/* [?, batch, length, width]: the interface has no way to read the number of states here, the caller of the operation has. */
static void encode_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
    TF_ShapeHandle* ids = TF_NewShapeHandle();
    TF_ShapeHandle* width = TF_NewShapeHandle();
    TF_ShapeHandle* states = TF_ShapeInferenceContextVectorFromSize(context, (size_t)-1);
    TF_ShapeInferenceContextGetInput(context, WORD_IDS, ids, status);
    if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextWithRank(context, ids, 2, ids, status);
    if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextGetInput(context, WORDS, width, status);
    if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextWithRank(context, width, 2, width, status);
    if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextSubshape(context, width, 1, 2, width, status);
    if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextConcatenateShapes(context, states, ids, ids, status);
    if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextConcatenateShapes(context, ids, width, ids, status);
    if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextSetOutput(context, 0, ids, status);
    TF_DeleteShapeHandle(states);
    TF_DeleteShapeHandle(width);
    TF_DeleteShapeHandle(ids);
}

/* ---- registration ------------------------------------------------------------------------------------------------- */

/* Says why an operation will be unknown. Loading a library has no other way to report it. */
static void report(const char* operation, const TF_Status* status) {
    if (TF_GetCode(status) != TF_OK) fprintf(stderr, "bertkit: %s: %s\n", operation, TF_Message(status));
}

__attribute__((constructor)) static void register_operations(void) {
    static const char name[] = "BertkitIbertEncode";
    TF_Status* status = TF_NewStatus();
    TF_OpDefinitionBuilder* operation = TF_NewOpDefinitionBuilder(name);
    for (int i = 0; i < INPUTS; ++i) TF_OpDefinitionBuilderAddInput(operation, ENCODE_INPUTS[i].declared);
    TF_OpDefinitionBuilderAddAttr(operation, "states: int >= 1");
    TF_OpDefinitionBuilderAddAttr(operation, "threads: int >= 1");
    TF_OpDefinitionBuilderAddOutput(operation, "hidden: int8");
    TF_OpDefinitionBuilderSetShapeInferenceFunction(operation, encode_shape);
    TF_RegisterOpDefinition(operation, status);
    report(name, status);
    TF_RegisterKernelBuilder(name, TF_NewKernelBuilder(name, "CPU", encode_create, encode_compute, encode_destroy), status);
    report(name, status);
    TF_DeleteStatus(status);
}

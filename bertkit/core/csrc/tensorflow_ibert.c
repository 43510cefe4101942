/* BertkitIbertEncode: bk_ibert_encode. */
#include <inttypes.h>

#include "tensorflow.h"

enum { PACKED, WORDS, TYPES, POSITIONS, WORD_IDS, TYPE_IDS, POSITION_IDS, MASK };
enum { STATES, THREADS };

static const char* const NAMES[] = {"packed", "words", "types", "positions", "word_ids", "type_ids", "position_ids", "mask"};

/* Says what is wrong with the shapes; with the right ones fills in the call. */
static void check(TF_Tensor* const* inputs, bk_ibert_call* call, TF_Status* status) {
    static const int64_t none[] = {0, 0};
    const int64_t batch = TF_Dim(inputs[WORD_IDS], 0), length = TF_Dim(inputs[WORD_IDS], 1);
    const int64_t width = TF_Dim(inputs[WORDS], 1);
    const int64_t ids[] = {batch, length};
    const bool masked = !has_dims(inputs[MASK], none, 2);
    for (int i = TYPE_IDS; i <= (masked ? MASK : POSITION_IDS); ++i) {
        if (has_dims(inputs[i], ids, 2)) continue;
        refuse(status, "BertkitIbertEncode: %s has shape [%" PRId64 ", %" PRId64 "], expected that of word_ids, [%" PRId64
               ", %" PRId64 "]", NAMES[i], TF_Dim(inputs[i], 0), TF_Dim(inputs[i], 1), batch, length);
        return;
    }
    for (int i = TYPES; i <= POSITIONS; ++i) {
        if (TF_Dim(inputs[i], 1) == width) continue;
        refuse(status, "BertkitIbertEncode: rows of %s hold %" PRId64 " numbers, expected %" PRId64 " as those of words",
               NAMES[i], TF_Dim(inputs[i], 1), width);
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

static void run(TF_OpKernelContext* context, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status* status) {
    bk_ibert_call call = {.states = attributes[STATES], .threads = attributes[THREADS]};
    check(inputs, &call, status);
    if (TF_GetCode(status) != TF_OK) return;
    const int64_t dims[] = {call.states, call.batch, call.length, call.width};
    TF_Tensor* hidden = allocate(context, 0, TF_INT8, dims, 4, status);
    if (TF_GetCode(status) == TF_OK) {
        call.hidden = TF_TensorData(hidden);
        report_code(status, "BertkitIbertEncode", bk_ibert_encode(&call));
    }
    if (hidden != NULL) TF_DeleteTensor(hidden);
}

/* [?, batch, length, width]: the interface has no way to read the number of states here, the caller of the operation has. */
static void shape(TF_ShapeInferenceContext* context, TF_Status* status) {
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

OPERATION(ibert_encode, "BertkitIbertEncode",
          {{"packed: uint8", 1},
           {"words: int8", 2},
           {"types: int8", 2},
           {"positions: int8", 2},
           {"word_ids: int64", 2},
           {"type_ids: int64", 2},
           {"position_ids: int64", 2},
           {"mask: uint8", 2}}, /* [0, 0]: there is none */
          {"states", "threads"}, {"hidden: int8"}, run, shape)

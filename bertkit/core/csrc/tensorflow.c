/* The kernels as TensorFlow operations, registered when TensorFlow loads this library; tensorflow_*.c have them. */
#include "tensorflow.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const Operation* const OPERATIONS[] = {&ibert_encode, &lsh_hash, &lsh_cumulation, &lsh_sampling,
                                              &lsh_weighted_cumulation, &lsh_sampling_gradients};

/* ---- what operations share ---------------------------------------------------------------------------------------- */

void refuse(TF_Status* status, const char* format, ...) {
    char message[256];
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    TF_SetStatus(status, TF_INVALID_ARGUMENT, message);
}

void report_code(TF_Status* status, const char* operation, int code) {
    char message[160];
    if (code == BK_OK) return;
    snprintf(message, sizeof message, "%s: %s", operation, bk_error(code));
    TF_SetStatus(status, code == BK_NO_MEMORY ? TF_RESOURCE_EXHAUSTED : TF_INVALID_ARGUMENT, message);
}

bool has_dims(const TF_Tensor* tensor, const int64_t* dims, int rank) {
    if (TF_NumDims(tensor) != rank) return false;
    for (int axis = 0; axis < rank; ++axis) {
        if (dims[axis] >= 0 && TF_Dim(tensor, axis) != dims[axis]) return false;
    }
    return true;
}

TF_Tensor* allocate(TF_OpKernelContext* context, int output, int type, const int64_t* dims, int rank, TF_Status* status) {
    size_t bytes = type == TF_INT8 ? 1 : 4;
    for (int axis = 0; axis < rank; ++axis) bytes *= (size_t)dims[axis];
    return TF_AllocateOutput(context, output, type, dims, rank, bytes, status);
}

/* ---- kernels ------------------------------------------------------------------------------------------------------ */

/* An operation at one place of a graph. */
typedef struct {
    const Operation* operation;
    int64_t attributes[MOST_ATTRIBUTES];
} Kernel;

void* create_kernel(const Operation* operation, TF_OpKernelConstruction* construction) {
    TF_Status* status = TF_NewStatus();
    Kernel* kernel = malloc(sizeof *kernel);
    if (kernel == NULL) {
        report_code(status, operation->name, BK_NO_MEMORY);
    } else {
        kernel->operation = operation;
        for (int i = 0; i < MOST_ATTRIBUTES && operation->attributes[i] != NULL && TF_GetCode(status) == TF_OK; ++i) {
            TF_OpKernelConstruction_GetAttrInt64(construction, operation->attributes[i], &kernel->attributes[i], status);
        }
    }
    if (TF_GetCode(status) != TF_OK) TF_OpKernelConstruction_Failure(construction, status);
    TF_DeleteStatus(status);
    return kernel;
}

static int input_count(const Operation* operation) {
    int count = 0;
    while (count < MOST_INPUTS && operation->inputs[count].declared != NULL) ++count;
    return count;
}

static void check_ranks(const Operation* operation, TF_Tensor* const* inputs, TF_Status* status) {
    for (int i = 0; i < input_count(operation); ++i) {
        const char* declared = operation->inputs[i].declared;
        if (TF_NumDims(inputs[i]) == operation->inputs[i].rank) continue;
        refuse(status, "%s: %.*s has %d axes, expected %d", operation->name, (int)strcspn(declared, ":"), declared,
               TF_NumDims(inputs[i]), operation->inputs[i].rank);
        return;
    }
}

static void compute(void* data, TF_OpKernelContext* context) {
    const Kernel* kernel = data;
    const Operation* operation = kernel->operation;
    TF_Status* status = TF_NewStatus();
    TF_Tensor* inputs[MOST_INPUTS] = {NULL};
    for (int i = 0; i < input_count(operation) && TF_GetCode(status) == TF_OK; ++i) TF_GetInput(context, i, &inputs[i], status);
    if (TF_GetCode(status) == TF_OK) check_ranks(operation, inputs, status);
    if (TF_GetCode(status) == TF_OK) operation->run(context, inputs, kernel->attributes, status);
    if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
    for (int i = 0; i < MOST_INPUTS; ++i) {
        if (inputs[i] != NULL) TF_DeleteTensor(inputs[i]);
    }
    TF_DeleteStatus(status);
}

/* ---- registration ------------------------------------------------------------------------------------------------- */

/* Says why an operation will be unknown. Loading a library has no other way to report it. */
static void report(const char* operation, const TF_Status* status) {
    if (TF_GetCode(status) != TF_OK) fprintf(stderr, "bertkit: %s: %s\n", operation, TF_Message(status));
}

static void register_operation(const Operation* operation, TF_Status* status) {
    TF_OpDefinitionBuilder* definition = TF_NewOpDefinitionBuilder(operation->name);
    for (int i = 0; i < input_count(operation); ++i) TF_OpDefinitionBuilderAddInput(definition, operation->inputs[i].declared);
    for (int i = 0; i < MOST_ATTRIBUTES && operation->attributes[i] != NULL; ++i) {
        char declared[64];
        snprintf(declared, sizeof declared, "%s: int >= 0", operation->attributes[i]);
        TF_OpDefinitionBuilderAddAttr(definition, declared);
    }
    for (int i = 0; i < MOST_OUTPUTS && operation->outputs[i] != NULL; ++i) {
        TF_OpDefinitionBuilderAddOutput(definition, operation->outputs[i]);
    }
    TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, operation->shape);
    TF_RegisterOpDefinition(definition, status);
    report(operation->name, status);
    TF_RegisterKernelBuilder(operation->name, TF_NewKernelBuilder(operation->name, "CPU", operation->create, compute, free), status);
    report(operation->name, status);
}

__attribute__((constructor)) static void register_operations(void) {
    TF_Status* status = TF_NewStatus();
    for (size_t i = 0; i < sizeof OPERATIONS / sizeof *OPERATIONS; ++i) register_operation(OPERATIONS[i], status);
    TF_DeleteStatus(status);
}

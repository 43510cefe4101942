/* What the files tensorflow*.c use of TensorFlow, and of one another.
 *
 * TensorFlow's plain C interface is declared here as far as it is used: its names and types are the same in every version,
 * so one library fits all of them and is built where there is no TensorFlow.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bertkit.h"

/* ---- TensorFlow's ----------------------------------------------------------------------------------------------- */

enum { TF_OK = 0, TF_INVALID_ARGUMENT = 3, TF_RESOURCE_EXHAUSTED = 8 };
enum { TF_FLOAT = 1, TF_INT32 = 3, TF_INT8 = 6 };

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
void TF_ShapeInferenceContextSetUnknownShape(TF_ShapeInferenceContext*, TF_Status*);
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

/* ---- ours --------------------------------------------------------------------------------------------------------- */

enum { MOST_INPUTS = 8, MOST_ATTRIBUTES = 4, MOST_OUTPUTS = 3 };

/* An operation. TensorFlow is told of inputs, attributes and outputs as in "packed: uint8"; what is not there is NULL. */
typedef struct Operation {
    const char* name;
    struct {
        const char* declared;
        int rank;
    } inputs[MOST_INPUTS];
    const char* attributes[MOST_ATTRIBUTES]; /* names of integers that are not negative */
    const char* outputs[MOST_OUTPUTS];
    /* Fills the outputs, or sets the status. The inputs have their ranks. */
    void (*run)(TF_OpKernelContext*, TF_Tensor* const* inputs, const int64_t* attributes, TF_Status*);
    void (*shape)(TF_ShapeInferenceContext*, TF_Status*);
    void* (*create)(TF_OpKernelConstruction*);
} Operation;

/* What TensorFlow calls to make a kernel does not say of which operation, so each has a function of its own. */
#define OPERATION(identifier, ...)                                                                                 \
    static void* create_##identifier(TF_OpKernelConstruction* construction);                                       \
    const Operation identifier = {__VA_ARGS__, .create = create_##identifier};                                     \
    static void* create_##identifier(TF_OpKernelConstruction* construction) { return create_kernel(&identifier, construction); }

extern const Operation ibert_encode, lsh_hash, lsh_cumulation, lsh_sampling, lsh_weighted_cumulation, lsh_sampling_gradients;

void* create_kernel(const Operation*, TF_OpKernelConstruction*);

/* An output of these dimensions, or NULL and a status. Whoever asks deletes it. */
TF_Tensor* allocate(TF_OpKernelContext*, int output, int type, const int64_t* dims, int rank, TF_Status*);

/* Whether the dimensions are these; any where less than 0. */
bool has_dims(const TF_Tensor*, const int64_t* dims, int rank);

/* Set the status: as printf prints it, or as a kernel's code says. */
void refuse(TF_Status*, const char* format, ...) __attribute__((format(printf, 2, 3)));
void report_code(TF_Status*, const char* operation, int code);

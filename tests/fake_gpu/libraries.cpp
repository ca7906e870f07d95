// cuBLAS, whose matrix products are noted and not computed, and NCCL for one process, which sends to itself.
// All types are pointers or numbers, whatever the headers of these libraries call them.
#include <cstring>

#include "fake.h"

static int succeed_with_handle(void** handle) {
  make_handle(handle);
  return 0;
}

// --- cuBLAS ---------------------------------------------------------------------------------------------------------

// The numbers of cudaDataType_t.
static const int FLOAT32 = 0, FLOAT16 = 2, BFLOAT16 = 14;

static int note_product(int type) {
  std::string name = "another type";
  if (type == FLOAT32) name = "float32";
  if (type == FLOAT16) name = "float16";
  if (type == BFLOAT16) name = "bfloat16";
  note("product in " + name);
  return 0;
}

API int cublasCreate_v2(void** handle) { return succeed_with_handle(handle); }

API int cublasGetMathMode(void*, int* mode) { return *mode = 0; }

API int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0; }

API int cublasGemmEx(void*, int, int, int, int, int, void*, void*, int type, ...) { return note_product(type); }

API int cublasGemmStridedBatchedEx(void*, int, int, int, int, int, void*, void*, int type, ...) {
  return note_product(type);
}

API int cublasSgemmEx(void*, int, int, int, int, int, void*, void*, int type, ...) { return note_product(type); }

API int cublasSgemm_v2(void*, ...) { return note_product(FLOAT32); }

API int cublasSgemmStridedBatched(void*, ...) { return note_product(FLOAT32); }

API int cublasSgemv_v2(void*, ...) { return note_product(FLOAT32); }

API int cublasSdot_v2(void*, ...) { return note_product(FLOAT32); }

// A layout is the number of its type.
API int cublasLtMatrixLayoutCreate(int** layout, int type, ...) {
  make_handle(layout);
  **layout = type;
  return 0;
}

API int cublasLtMatmulDescCreate(void** description, ...) { return succeed_with_handle(description); }

API int cublasLtMatmulPreferenceCreate(void** preference) { return succeed_with_handle(preference); }

API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* result,
                                       int* count) {
  memset(result, 0, 64);
  *count = 1;
  return 0;
}

API int cublasLtMatmul(void*, void*, void*, void*, int* layout, ...) { return note_product(*layout); }

// --- NCCL -----------------------------------------------------------------------------------------------------------

API int ncclGetUniqueId(char* id) {
  memset(id, 7, 128);
  return 0;
}

API int ncclCommInitRankConfig(void** communicator, ...) { return succeed_with_handle(communicator); }

API int ncclCommInitRank(void** communicator, ...) { return succeed_with_handle(communicator); }

API int ncclCommGetAsyncError(void*, int* error) { return *error = 0; }

API int ncclCommCount(void*, int* count) {
  *count = 1;
  return 0;
}

API int ncclCommUserRank(void*, int* rank) { return *rank = 0; }

API int ncclGetVersion(int* version) {
  *version = 22800;
  return 0;
}

static int send_to_itself(const void* source, void* target, size_t count, int type) {
  static const size_t SIZES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  size_t size = count * SIZES[type];
  if (source != target && size <= 1 << 20) memmove(target, source, size);
  note("collective");
  return 0;
}

API int ncclAllGather(const void* source, void* target, size_t count, int type, ...) {
  return send_to_itself(source, target, count, type);
}

API int ncclAllReduce(const void* source, void* target, size_t count, int type, ...) {
  return send_to_itself(source, target, count, type);
}

API int ncclBroadcast(const void* source, void* target, size_t count, int type, ...) {
  return send_to_itself(source, target, count, type);
}

API int ncclReduceScatter(const void* source, void* target, size_t count, int type, ...) {
  return send_to_itself(source, target, count, type);
}

// The driver below the runtime, for Triton and torch.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstring>

#include "fake.h"

static int succeed() { return 0; }

API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = (void*)succeed;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute number, CUdevice) {
  *value = device_attribute(number);
  return CUDA_SUCCESS;
}

API CUresult cuDeviceGet(CUdevice* device, int) {
  *device = 0;
  return CUDA_SUCCESS;
}

API CUresult cuCtxGetDevice(CUdevice* device) { return cuDeviceGet(device, 0); }

API CUresult cuCtxGetCurrent(CUcontext* context) {
  static char only[64];
  *context = (CUcontext)only;
  return CUDA_SUCCESS;
}

API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return cuCtxGetCurrent(context); }

API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned*, int* is_active) {
  *is_active = 1;
  return CUDA_SUCCESS;
}

API CUresult cuDriverGetVersion(int* version) {
  *version = 13020;
  return CUDA_SUCCESS;
}

API CUresult cuGetErrorString(CUresult, const char** text) {
  *text = "an error of the fake CUDA";
  return CUDA_SUCCESS;
}

API CUresult cuModuleLoadData(CUmodule* module, const void*) {
  make_handle(module);
  return CUDA_SUCCESS;
}

// A function is its name.
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  *function = (CUfunction)strdup(name);
  return CUDA_SUCCESS;
}

API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute number, CUfunction) {
  *value = 0;
  if (number == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) *value = 1024;
  if (number == CU_FUNC_ATTRIBUTE_NUM_REGS) *value = 32;
  return CUDA_SUCCESS;
}

API CUresult cuLaunchKernel(CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                            CUstream, void**, void**) {
  note(std::string("kernel ") + (char*)function);
  return CUDA_SUCCESS;
}

API CUresult cuLaunchKernelEx(const CUlaunchConfig*, CUfunction function, void**, void**) {
  note(std::string("kernel ") + (char*)function);
  return CUDA_SUCCESS;
}

API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute number, CUdeviceptr pointer) {
  if (number == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr*)value = pointer;
  return CUDA_SUCCESS;
}

API CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

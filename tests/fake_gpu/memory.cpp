// The memory of a GPU that does nothing: the host's, mapped and not touched, so that a large model takes none of it.
// Copies copy.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "fake.h"

static std::mutex lock;

// --- Notes ----------------------------------------------------------------------------------------------------------

static bool is_noting;

static std::vector<std::string>& notes() { return forever<std::vector<std::string>>(); }

void note(std::string event) {
  std::lock_guard guard(lock);
  if (is_noting) notes().push_back(std::move(event));
}

API void fake_begin_notes() {
  std::lock_guard guard(lock);
  notes().clear();
  is_noting = true;
}

API void fake_end_notes() {
  std::lock_guard guard(lock);
  is_noting = false;
}

API size_t fake_count_notes() { return notes().size(); }

API const char* fake_get_note(size_t index) { return notes()[index].c_str(); }

// --- Memory ---------------------------------------------------------------------------------------------------------

static const size_t CAPACITY = 150754820096;  // an H200's
static const size_t PAGE = 4096;
static const size_t LARGE = 1 << 20;

// The sizes of pieces of memory by their addresses.
using Ranges = std::map<uintptr_t, size_t>;
static Ranges device_memory, pinned_memory;
static size_t used;
static thread_local cudaError_t last_error = cudaSuccess;

static bool is_inside(const Ranges& ranges, const void* pointer) {
  auto next = ranges.upper_bound((uintptr_t)pointer);
  if (next == ranges.begin()) return false;
  --next;
  return (uintptr_t)pointer < next->first + next->second;
}

API cudaError_t cudaMalloc(void** pointer, size_t size) {
  std::lock_guard guard(lock);
  size = (size / PAGE + 1) * PAGE;
  *pointer = nullptr;
  if (used + size > CAPACITY) return last_error = cudaErrorMemoryAllocation;
  *pointer = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  device_memory[(uintptr_t)*pointer] = size;
  used += size;
  return cudaSuccess;
}

API cudaError_t cudaFree(void* pointer) {
  std::lock_guard guard(lock);
  auto range = device_memory.find((uintptr_t)pointer);
  if (range == device_memory.end()) return cudaSuccess;
  munmap(pointer, range->second);
  used -= range->second;
  device_memory.erase(range);
  return cudaSuccess;
}

API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = CAPACITY;
  *free = CAPACITY - used;
  return cudaSuccess;
}

API cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) {
  std::lock_guard guard(lock);
  if (posix_memalign(pointer, PAGE, size + 1)) return last_error = cudaErrorMemoryAllocation;
  pinned_memory[(uintptr_t)*pointer] = size + 1;
  return cudaSuccess;
}

API cudaError_t cudaFreeHost(void* pointer) {
  std::lock_guard guard(lock);
  pinned_memory.erase((uintptr_t)pointer);
  free(pointer);
  return cudaSuccess;
}

API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  std::lock_guard guard(lock);
  *attributes = {};
  attributes->type = cudaMemoryTypeUnregistered;
  if (is_inside(device_memory, pointer)) attributes->type = cudaMemoryTypeDevice;
  if (is_inside(pinned_memory, pointer)) attributes->type = cudaMemoryTypeHost;
  return cudaSuccess;
}

static cudaError_t copy(void* target, const void* source, size_t size) {
  bool from_device, to_device, is_pageable;
  {
    std::lock_guard guard(lock);
    from_device = is_inside(device_memory, source);
    to_device = is_inside(device_memory, target);
    is_pageable = from_device != to_device && !is_inside(pinned_memory, from_device ? target : source);
  }
  // What is large on the device was written by no kernel, and isn't worth copying there.
  if (!(from_device && to_device && size > LARGE)) memmove(target, source, size);
  std::string way = std::string(from_device ? "device" : "host") + " to " + (to_device ? "device" : "host");
  note((is_pageable ? "pageable copy, " : "copy, ") + way);
  return cudaSuccess;
}

API cudaError_t cudaMemcpy(void* target, const void* source, size_t size, cudaMemcpyKind) {
  return copy(target, source, size);
}

API cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t size, cudaMemcpyKind, cudaStream_t) {
  return copy(target, source, size);
}

API cudaError_t cudaMemsetAsync(void* pointer, int value, size_t size, cudaStream_t) {
  if (size <= LARGE) memset(pointer, value, size);
  return cudaSuccess;
}

API cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

API cudaError_t cudaPeekAtLastError() { return last_error; }

API const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "no error";
}

API const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

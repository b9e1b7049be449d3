#include <memory>
#include <vector>

#include "../cuda_api.h"
#include "device_guard.h"
#include "event_clock.h"
#include "nvml.h"
#include "pipeinfer/base/check.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer {

void check_cuda(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky was reported here, not to the next caller
  runtime_failure(
      cat("CUDA: ", doing, ": ", cudaGetErrorName(status), " (", cudaGetErrorString(status), ")"));
}

namespace cuda {
namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

/// One clock a device for the whole process; its handles are left to the driver at exit.
EventClock& event_clock(int index) {
  static std::vector<std::unique_ptr<EventClock>>& clocks = *[] {
    auto* all = new std::vector<std::unique_ptr<EventClock>>;
    for (int i = 0; i < device_count(); ++i) all->push_back(std::make_unique<EventClock>(i));
    return all;
  }();
  return *clocks.at(index);
}

/// Throws what an allocation that failed means.
void check_alloc(cudaError_t status, size_t bytes, const std::string& what, int index) {
  if (status != cudaErrorMemoryAllocation) return check_cuda(status, cat("allocating ", what).c_str());
  cudaGetLastError();  // the next call must not report it again
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  runtime_failure(cat("out of memory: ", what, " needs ", bytes, " bytes, CUDA device ", index, " has ",
                      free_bytes, " of ", total_bytes, " bytes free"));
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

CudaVersions versions() {
  CudaVersions versions;
  check_cuda(cudaRuntimeGetVersion(&versions.runtime), "reading CUDA's version");
  check_cuda(cudaDriverGetVersion(&versions.driver), "reading the driver's version");
  return versions;
}

void set_device(int index) {
  const int count = device_count();
  if (index < 0 || index >= count)
    usage_error(cat("CUDA device ", index, " was asked for, but ", count, " CUDA devices are visible"));
  check_cuda(cudaSetDevice(index), "choosing a device");
}

DeviceInfo device_info(int index) {
  const DeviceGuard guard(index);
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "reading a device's properties");
  size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "reading a device's memory");
  char pci[32] = {};
  check_cuda(cudaDeviceGetPCIBusId(pci, sizeof pci, index), "reading a device's PCI address");
  DeviceInfo info;
  info.name = properties.name;
  info.pci_bus_id = pci;
  info.total_bytes = static_cast<int64_t>(total_bytes);
  info.free_bytes = static_cast<int64_t>(free_bytes);
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  return info;
}

DeviceUse device_use(int index) {
  char pci[32] = {};
  check_cuda(cudaDeviceGetPCIBusId(pci, sizeof pci, index), "reading a device's PCI address");
  return nvml_device_use(pci);
}

void* stream_create(int index) {
  const DeviceGuard guard(index);
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  return stream;
}

void stream_destroy(void* stream) noexcept { cudaStreamDestroy(stream_of(stream)); }

void* event_create(int index) {
  const DeviceGuard guard(index);
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreate(&event), "creating an event");
  return event;
}

void event_destroy(void* event) noexcept { cudaEventDestroy(event_of(event)); }

void event_record(void* event, void* stream) {
  check_cuda(cudaEventRecord(event_of(event), stream_of(stream)), "recording an event");
}

bool event_ready(void* event) {
  const cudaError_t status = cudaEventQuery(event_of(event));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // "not yet" is no error to report later
    return false;
  }
  check_cuda(status, "work before an event");
  return true;
}

void event_block(void* event, void* stream) {
  check_cuda(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0), "waiting for an event");
}

double event_time_s(void* event, int index) { return event_clock(index).time_s(event_of(event)); }

void* device_alloc(int index, size_t bytes, const std::string& what) {
  const DeviceGuard guard(index);
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  check_alloc(cudaMalloc(&data, bytes), bytes, what, index);
  return data;
}

void device_free(void* data) noexcept { cudaFree(data); }

void* pinned_alloc(int index, size_t bytes, const std::string& what) {
  const DeviceGuard guard(index);
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, bytes, cudaHostAllocPortable);
  if (status == cudaErrorMemoryAllocation || status == cudaErrorInvalidValue) {
    cudaGetLastError();
    runtime_failure(cat("out of memory: ", what, " needs ", bytes,
                        " bytes of pinned host memory, and the host gives ", "no more (",
                        cudaGetErrorString(status), ")"));
  }
  check_cuda(status, cat("allocating ", what).c_str());
  return data;
}

void pinned_free(void* data) noexcept { cudaFreeHost(data); }

void copy_async(void* to, const void* from, size_t bytes, void* stream) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream)), "copying");
}

void fill_async(void* to, int byte, size_t bytes, void* stream) {
  check_cuda(cudaMemsetAsync(to, byte, bytes, stream_of(stream)), "filling memory");
}

}  // namespace cuda
}  // namespace pipeinfer

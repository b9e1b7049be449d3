// The twin of cuda/device_cuda.cpp for builds without CUDA: there is no device, and asking for one is a usage error.
#include "cuda_api.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer::cuda {
namespace {

[[noreturn]] void refuse() {
  usage_error("a CUDA device was asked for, but this pipeinfer was built without CUDA (use --device cpu)");
}

}  // namespace

int device_count() { return 0; }
CudaVersions versions() { return {}; }
void set_device(int) { refuse(); }
DeviceInfo device_info(int) { refuse(); }
DeviceUse device_use(int) { refuse(); }

void* stream_create(int) { refuse(); }
void stream_destroy(void*) noexcept {}

void* event_create(int) { refuse(); }
void event_destroy(void*) noexcept {}
void event_record(void*, void*) { refuse(); }
bool event_ready(void*) { refuse(); }
void event_block(void*, void*) { refuse(); }
double event_time_s(void*, int) { refuse(); }

void* device_alloc(int, size_t, const std::string&) { refuse(); }
void device_free(void*) noexcept {}
void* pinned_alloc(int, size_t, const std::string&) { refuse(); }
void pinned_free(void*) noexcept {}

void* graph_capture(void*, const std::function<void()>&) { refuse(); }
void graph_launch(void*, void*) { refuse(); }
void graph_destroy(void*) noexcept {}

void copy_async(void*, const void*, size_t, void*) { refuse(); }
void fill_async(void*, int, size_t, void*) { refuse(); }

}  // namespace pipeinfer::cuda

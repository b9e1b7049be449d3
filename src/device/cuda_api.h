// What device.cpp needs of CUDA. Defined by cuda/device_cuda.cpp, or by no_cuda.cpp where CUDA is not built in.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "pipeinfer/device/device.h"

namespace pipeinfer::cuda {

int device_count();
CudaVersions versions();
void set_device(int index);
DeviceInfo device_info(int index);
DeviceUse device_use(int index);

void* stream_create(int index);
void stream_destroy(void* stream) noexcept;

void* event_create(int index);
void event_destroy(void* event) noexcept;
void event_record(void* event, void* stream);
bool event_ready(void* event);
void event_block(void* event, void* stream);
double event_time_s(void* event, int index);

void* device_alloc(int index, size_t bytes, const std::string& what);
void device_free(void* data) noexcept;
void* pinned_alloc(int index, size_t bytes, const std::string& what);
void pinned_free(void* data) noexcept;

void* graph_capture(void* stream, const std::function<void()>& enqueue);
void graph_launch(void* graph, void* stream);
void graph_destroy(void* graph) noexcept;

void copy_async(void* to, const void* from, size_t bytes, void* stream);
void fill_async(void* to, int byte, size_t bytes, void* stream);

}  // namespace pipeinfer::cuda

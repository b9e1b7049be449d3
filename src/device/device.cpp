#include "pipeinfer/device/device.h"

#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "cpu.h"
#include "cuda_api.h"
#include "pipeinfer/base/check.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer {

int cuda_device_count() { return cuda::device_count(); }

CudaVersions cuda_versions() { return cuda::versions(); }

void use_device(Device device) {
  if (device.is_cuda()) cuda::set_device(device.index);
}

DeviceInfo device_info(Device device) {
  return device.is_cuda() ? cuda::device_info(device.index) : cpu::device_info();
}

DeviceUse device_use(Device device) {
  return device.is_cuda() ? cuda::device_use(device.index) : cpu::device_use();
}

Stream::Stream(Device device) : device_(device) {
  if (device.is_cuda()) native_ = cuda::stream_create(device.index);
}

Stream::~Stream() {
  if (native_) cuda::stream_destroy(native_);
}

Stream::Stream(Stream&& other) noexcept
    : device_(other.device_), native_(std::exchange(other.native_, nullptr)) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(native_, other.native_);
  return *this;
}

Event::Event(Device device) : device_(device) {
  if (device.is_cuda()) native_ = cuda::event_create(device.index);
}

Event::~Event() {
  if (native_) cuda::event_destroy(native_);
}

Event::Event(Event&& other) noexcept
    : device_(other.device_),
      native_(std::exchange(other.native_, nullptr)),
      cpu_time_s_(other.cpu_time_s_) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(native_, other.native_);
  std::swap(cpu_time_s_, other.cpu_time_s_);
  return *this;
}

void Event::record(Stream& stream) {
  PI_CHECK(device_.kind == stream.device().kind && device_.index == stream.device().index,
           "an event and the stream it is recorded in must be of one device");
  if (native_) {
    cuda::event_record(native_, stream.native());
  } else {
    cpu_time_s_ = now_s();
  }
}

bool Event::ready() const { return native_ ? cuda::event_ready(native_) : true; }

void Event::block(Stream& stream) const {
  if (native_ && stream.native()) cuda::event_block(native_, stream.native());
}

double Event::time_s() const { return native_ ? cuda::event_time_s(native_, device_.index) : cpu_time_s_; }

bool wait_until(const Event& event, double timeout_s) {
  constexpr double kSpinS = 200e-6;
  const double start = now_s();
  while (!event.ready()) {
    const double waited = now_s() - start;
    if (waited >= timeout_s) return false;
    if (waited > kSpinS) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

DeviceBuffer::DeviceBuffer(Device device, size_t bytes, const std::string& what)
    : device_(device),
      data_(device.is_cuda() ? cuda::device_alloc(device.index, bytes, what) : cpu::alloc(bytes, what)),
      bytes_(bytes) {}

DeviceBuffer::~DeviceBuffer() {
  if (data_) device_.is_cuda() ? cuda::device_free(data_) : cpu::free(data_);
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedBuffer::PinnedBuffer(Device device, size_t bytes, const std::string& what)
    : device_(device),
      data_(device.is_cuda() ? cuda::pinned_alloc(device.index, bytes, what) : cpu::alloc(bytes, what)),
      bytes_(bytes) {}

PinnedBuffer::~PinnedBuffer() {
  if (data_) device_.is_cuda() ? cuda::pinned_free(data_) : cpu::free(data_);
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void copy_async(void* to, const void* from, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  if (stream.device().is_cuda()) {
    cuda::copy_async(to, from, bytes, stream.native());
  } else {
    std::memcpy(to, from, bytes);
  }
}

void fill_async(void* to, int byte, size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  if (stream.device().is_cuda()) {
    cuda::fill_async(to, byte, bytes, stream.native());
  } else {
    std::memset(to, byte, bytes);
  }
}

}  // namespace pipeinfer

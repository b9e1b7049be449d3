// Small host tables on their way to the device: one pinned buffer and one copy a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pipeinfer/base/check.h"
#include "pipeinfer/device/device.h"
#include "pipeinfer/model/stage_options.h"

namespace pipeinfer::model {

/// Most bytes of a step's tables.
size_t table_bytes(const StageOptions& options);

/// A ring of pinned buffers in front of one device buffer: the stream's order keeps a step's tables on the device
/// until its kernels have read them, and an event a pinned buffer until it was copied.
class StepUpload {
 public:
  /// `device_memory` [table_bytes(options)] is the caller's.
  StepUpload(const StageOptions& options, Device device, void* device_memory);

  /// Takes the next pinned buffer. Waits only where the ring is full.
  void begin();

  /// Adds a table; returns where it will be on the device.
  template <typename T>
  const T* put(std::span<const T> values) {
    return static_cast<const T*>(put(values.data(), values.size_bytes()));
  }
  template <typename T>
  const T* put(const std::vector<T>& values) {
    return put(std::span<const T>(values));
  }

  /// Where the first table of any step will be on the device; the next one is padded(its bytes) behind it.
  template <typename T>
  const T* first() const {
    return reinterpret_cast<const T*>(device_);
  }
  static size_t padded(size_t bytes) { return (bytes + 15) / 16 * 16; }

  /// Enqueues the copy of what was put since `begin`.
  void send(Stream& stream);

  /// Instead of all that, for a short table that is read once: use(table) enqueues what reads it, out of the pinned buffer.
  template <typename T, typename Use>
  void lend(const std::vector<T>& values, Stream& stream, Use&& use) {
    begin();
    put(values);
    use(ring_[turn_].as<T>());
    sent_[turn_].record(stream);
  }

 private:
  const void* put(const void* values, size_t bytes);

  char* device_;
  size_t capacity_;
  std::vector<PinnedBuffer> ring_;
  std::vector<Event> sent_;
  size_t turn_ = 0;
  size_t used_ = 0;
};

}  // namespace pipeinfer::model

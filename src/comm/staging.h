// Host buffers that MPI sends from and receives into.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "pipeinfer/device/device.h"

namespace pipeinfer {

/// Pinned memory of a pool, and the event after which it holds what was copied in, or may be reused.
struct Staging {
  Staging(Device device, size_t capacity)
      : memory(device, capacity, "a message between ranks"), event(device) {}
  std::byte* data() const { return memory.as<std::byte>(); }

  PinnedBuffer memory;
  Event event;
  size_t bytes = 0;  ///< in use
};

/// Buffers in sizes of powers of two. Thread-safe; what it gives out keeps it alive, and comes back by itself.
class StagingPool : public std::enable_shared_from_this<StagingPool> {
 public:
  explicit StagingPool(Device device) : device_(device) {}

  Device device() const { return device_; }

  struct Return {
    std::shared_ptr<StagingPool> pool;
    void operator()(Staging* staging) const;
  };
  using Pointer = std::unique_ptr<Staging, Return>;

  /// `bytes` may be 0.
  Pointer take(size_t bytes);

 private:
  const Device device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Staging>> free_;
};

using StagingPtr = StagingPool::Pointer;

}  // namespace pipeinfer

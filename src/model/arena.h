// Pieces of one allocation.
#pragma once

#include <cstddef>
#include <string>

#include "pipeinfer/base/check.h"
#include "pipeinfer/device/device.h"

namespace pipeinfer::model {

/// Hands out pieces of one device allocation, each aligned to 256 bytes. Without memory it only counts, and hands out
/// addresses that must not be used: so a plan is computed by the code that allocates.
class Arena {
 public:
  Arena() = default;
  Arena(Device device, size_t bytes, const std::string& what) : memory_(device, bytes, what) {}

  template <typename T = void>
  T* take(size_t bytes) {
    const size_t begin = used_;
    used_ += (bytes + 255) / 256 * 256;
    if (!memory_.data()) return nullptr;
    PI_CHECK(used_ <= memory_.bytes(), "the plan said ", memory_.bytes(), " bytes");
    return reinterpret_cast<T*>(memory_.as<char>() + begin);
  }

  size_t used() const { return used_; }

 private:
  DeviceBuffer memory_;
  size_t used_ = 0;
};

}  // namespace pipeinfer::model

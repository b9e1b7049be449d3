// Makes a device current for a scope.
#pragma once

#include <cuda_runtime_api.h>

#include "pipeinfer/device/cuda_check.h"

namespace pipeinfer::cuda {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "asking for the current device");
    if (before_ == device) return;
    check_cuda(cudaSetDevice(device), "choosing a device");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace pipeinfer::cuda

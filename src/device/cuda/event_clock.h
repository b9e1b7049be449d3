// Event times on the host's clock.
#pragma once

#include <cuda_runtime_api.h>

#include <mutex>

namespace pipeinfer::cuda {

/// Maps events of one device to now_s(). An event's time is a base event's, whose host time was measured, plus the
/// time between the two, which CUDA gives as a float of milliseconds: to stay within a microsecond, the base is
/// renewed every few seconds. Thread-safe.
class EventClock {
 public:
  explicit EventClock(int device) : device_(device) {}

  double time_s(cudaEvent_t event);

 private:
  void renew();

  const int device_;
  std::mutex mutex_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t base_ = nullptr, candidate_ = nullptr;
  double base_s_ = 0;
};

}  // namespace pipeinfer::cuda

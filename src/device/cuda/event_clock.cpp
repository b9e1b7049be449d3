#include "event_clock.h"

#include <limits>
#include <utility>

#include "device_guard.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/device/cuda_check.h"

namespace pipeinfer::cuda {

double EventClock::time_s(cudaEvent_t event) {
  constexpr double kBaseLifeS = 4;  // 4,000 ms as float: steps of 0.25 microseconds
  const std::lock_guard lock(mutex_);
  if (!stream_ || now_s() - base_s_ > kBaseLifeS) renew();
  float ms = 0;  // negative where the event is older than the base
  check_cuda(cudaEventElapsedTime(&ms, base_, event), "reading an event's time");
  return base_s_ + ms * 1e-3;
}

void EventClock::renew() {
  constexpr double kDeadlineS = 10;
  const DeviceGuard guard(device_);
  if (!stream_) {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating the clock's stream");
    check_cuda(cudaEventCreate(&base_), "creating the clock's event");
    check_cuda(cudaEventCreate(&candidate_), "creating the clock's event");
  }
  // The event happened between the two readings of the host's clock: the closest of some pairs.
  double closest = std::numeric_limits<double>::infinity();
  for (int attempt = 0; attempt < 5; ++attempt) {
    const double before = now_s();
    check_cuda(cudaEventRecord(candidate_, stream_), "recording the clock's event");
    for (cudaError_t status; (status = cudaEventQuery(candidate_)) != cudaSuccess;) {
      if (status != cudaErrorNotReady) check_cuda(status, "waiting for the clock's event");
      if (now_s() - before > kDeadlineS)
        runtime_failure("CUDA: a device does not record an event within 10 s");
    }
    const double after = now_s();
    if (after - before >= closest) continue;
    closest = after - before;
    base_s_ = (before + after) / 2;
    std::swap(base_, candidate_);
  }
}

}  // namespace pipeinfer::cuda

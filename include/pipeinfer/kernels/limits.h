// How fast the device can read its memory, what decoding is judged by, and multiply, what prefill is judged by.
#pragma once

#include <cstddef>

#include "pipeinfer/base/types.h"
#include "pipeinfer/device/device.h"

namespace pipeinfer {

/// The best of some plain reads of `bytes` of the device's memory, in GB/s (1e9 bytes a second). On the CPU by
/// `threads` threads. 0 where the memory for it is not to be had.
double read_limit_gbps(Device device, size_t bytes, int threads);

/// The rate at which the product of 2048 x 3200 and 3200 x 17280 elements (a prefill's largest) goes on, by the kernel that a
/// prefill takes, in TFLOP/s: the median of half a second's. 0 on the CPU.
double gemm_rate_tflops(Device device, DType dtype);

}  // namespace pipeinfer

// How fast the device can read its memory: what decoding is judged by.
#pragma once

#include <cstddef>

#include "pipeinfer/device/device.h"

namespace pipeinfer {

/// The best of some plain reads of `bytes` of the device's memory, in GB/s (1e9 bytes a second). On the CPU by
/// `threads` threads. 0 where the memory for it is not to be had.
double read_limit_gbps(Device device, size_t bytes, int threads);

}  // namespace pipeinfer

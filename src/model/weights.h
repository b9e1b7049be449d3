// How a checkpoint's tensors come into packed parameters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/device/device.h"

namespace pipeinfer::model {

/// One tensor of the checkpoint and the part of a parameter that it fills; contiguous, in the stage's dtype.
struct WeightSlice {
  std::string name;
  std::vector<int64_t> shape;
  void* data = nullptr;  // on the device
};

/// Reads every slice, each byte once: in place on the CPU, by way of two pinned buffers to a GPU. All slices are
/// checked before the first is read. Throws Error(usage) that names file, tensor, expected and found.
void load_weights(const std::vector<WeightSlice>& slices, const Checkpoint& checkpoint, DType dtype,
                  Device device);

/// Fills every slice: norms with ones, the rest with normal numbers of deviation 0.02.
void randomize_weights(const std::vector<WeightSlice>& slices, uint64_t seed, DType dtype, Device device);

/// Waits until everything enqueued on `stream` has happened. Throws Error(failed) after some minutes.
void finish_copies(Stream& stream);

}  // namespace pipeinfer::model

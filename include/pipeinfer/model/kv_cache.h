// The paged KV cache of a stage (Kwon et al. 2023, arXiv:2309.06180).
#pragma once

#include <vector>

#include "pipeinfer/device/device.h"
#include "pipeinfer/kernels/kernels.h"
#include "pipeinfer/model/stage_options.h"

namespace pipeinfer {

/// One allocation a layer, [blocks + 1, 2, kv_heads, block_size x head_dim] (see kernels::KvLayer): a layer's block is
/// one contiguous chunk, and so is a head's in it. The last block is the null block, where padded rows may write.
class KvCache {
 public:
  /// Throws Error(failed) that names the layer that did not fit.
  KvCache(const ModelConfig& config, const StageOptions& options, Device device);

  /// `index` counts from the stage's first layer.
  kernels::KvLayer layer(int index) const;
  int null_block() const { return null_block_; }

 private:
  std::vector<DeviceBuffer> layers_;
  kernels::KvLayer shape_;
  int null_block_;
};

}  // namespace pipeinfer

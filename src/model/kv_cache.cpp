#include "pipeinfer/model/kv_cache.h"

#include "pipeinfer/base/text.h"

namespace pipeinfer {

namespace {

int64_t layer_block_bytes(const ModelConfig& config, const StageOptions& options) {
  return config.kv_elements() * options.block_size * dtype_size(options.dtype);
}

}  // namespace

int64_t kv_block_bytes(const ModelConfig& config, const StageOptions& options) {
  return options.n_layers() * layer_block_bytes(config, options);
}

KvCache::KvCache(const ModelConfig& config, const StageOptions& options, Device device)
    : shape_{.block_size = options.block_size, .n_kv_heads = config.n_kv_heads, .head_dim = config.head_dim},
      null_block_(options.blocks) {
  for (int i = options.first_layer; i < options.last_layer; ++i)
    layers_.emplace_back(device, (options.blocks + 1) * layer_block_bytes(config, options),
                         cat("the KV cache of layer ", i));
}

kernels::KvLayer KvCache::layer(int index) const {
  kernels::KvLayer layer = shape_;
  layer.data = layers_[index].data();
  return layer;
}

}  // namespace pipeinfer

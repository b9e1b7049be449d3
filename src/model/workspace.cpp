#include "workspace.h"

#include <algorithm>

#include "step_upload.h"

namespace pipeinfer {

namespace model {

Workspace make_workspace(const ModelConfig& config, const StageOptions& options, Arena& arena) {
  const bool last = options.last_layer == config.n_layers;
  const size_t row = options.max_tokens * dtype_size(options.dtype);  // bytes of one column
  Workspace space;
  space.x = arena.take(row * config.hidden_size);
  space.normed = arena.take(row * config.hidden_size);
  space.squares = arena.take<float>(sizeof(float) * kernels::kFusedRows * kernels::kNormParts);
  space.qkv = arena.take(row * (config.q_size() + 2 * config.kv_size()));
  space.attended = arena.take(row * config.q_size());
  space.gate_up = arena.take(row * 2 * config.intermediate_size);
  space.mlp = arena.take(row * config.intermediate_size);
  space.inv_freq = arena.take<float>(sizeof(float) * config.head_dim / 2);
  space.angle = arena.take<float>(sizeof(float) * config.head_dim * options.max_tokens);

  const size_t slots = options.slots + 1;
  space.block_table = arena.take<int32_t>(sizeof(int32_t) * slots * options.max_blocks());
  space.slots.sampling = arena.take<SamplingParams>(sizeof(SamplingParams) * slots);
  space.slots.prompt_tokens = arena.take<int32_t>(sizeof(int32_t) * slots);
  space.slots.last_token = arena.take<int32_t>(sizeof(int32_t) * slots);
  space.from_slot = arena.take<int32_t>(sizeof(int32_t) * options.max_graph_rows());
  space.tables = arena.take(table_bytes(options));
  if (last) {
    space.slots.seen_words = (config.vocab_size + 31) / 32;
    space.slots.seen = arena.take<uint32_t>(sizeof(uint32_t) * slots * space.slots.seen_words);
    space.logits = arena.take<float>(sizeof(float) * kHeadRows * config.vocab_size);
  }
  return space;
}

}  // namespace model

int64_t workspace_bytes(const ModelConfig& config, const StageOptions& options) {
  model::Arena count;
  model::make_workspace(config, options, count);
  return count.used();
}

}  // namespace pipeinfer

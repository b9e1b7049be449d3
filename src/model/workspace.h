// Device memory of a stage beside weights and KV cache: allocated once, used by every step.
#pragma once

#include <cstdint>

#include "arena.h"
#include "pipeinfer/kernels/kernels.h"
#include "pipeinfer/model/stage_options.h"

namespace pipeinfer::model {

/// All in the stage's dtype unless typed otherwise. T = max_tokens.
struct Workspace {
  void* x = nullptr;         // [T, hidden]: the residual stream of the last stage and of graphs
  void* normed = nullptr;    // [T, hidden]: norm(x), or of a fused pass x * norm weight
  float* squares = nullptr;  // kernels::SplitNorm's, of a fused pass
  void* qkv = nullptr;       // [T, q + 2 kv]
  void* attended = nullptr;  // [T, q]
  void* gate_up = nullptr;   // [T, 2 intermediate]
  void* mlp = nullptr;       // [T, intermediate]
  float* logits = nullptr;   // [kHeadRows, vocab]; last stage only

  // Per slot, and for the null slot behind them, which padded rows use: its blocks are the null block.
  kernels::SlotTable slots;        // `seen` on the last stage only
  int32_t* block_table = nullptr;  // [slots + 1, max_blocks]
  float* inv_freq = nullptr;       // [head_dim / 2]
  float* angle = nullptr;          // [T, head_dim / 2, 2], see kernels::prepare_attention
  int32_t* from_slot = nullptr;    // [max_graph_rows()]: kFromSlot, the tokens of decode rows
  void* decode =
      nullptr;  // kernels::decode_workspace_bytes; its size depends on the GPU, so it is no piece of
                //   the arena
  void* tables = nullptr;  // a step's tables, see step_upload.h
};

Workspace make_workspace(const ModelConfig& config, const StageOptions& options, Arena& arena);

}  // namespace pipeinfer::model

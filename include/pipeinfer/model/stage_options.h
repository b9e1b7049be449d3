// What a LlamaStage is built for, and what that costs. The numbers are known before anything is allocated.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pipeinfer/base/types.h"
#include "pipeinfer/config/model_config.h"

namespace pipeinfer {

struct StageOptions {
  int first_layer = 0;        ///< layers [first_layer, last_layer); the first stage also embeds,
  int last_layer = 0;         ///< the one that ends at n_layers also has norm and head, and samples
  DType dtype = DType::fp32;  ///< weights, activations, KV cache
  int slots = 1;              ///< PlanLimits::slots
  int blocks = 1;             ///< usable KV blocks; one more is allocated: the null block, id `blocks`
  int block_size = 16;        ///< tokens a KV block
  int context = 0;            ///< most tokens of a sequence
  int max_tokens = 512;       ///< most tokens of a step
  int steps_in_flight = 16;   ///< steps that may be enqueued before the oldest has run, without `run` waiting
  bool cuda_graphs = true;    ///< GPU: decode rows replay graphs, see LlamaStage::warm_up
  bool reference_kernels =
      false;  ///< GPU: library products and one plain kernel an operation, for comparison

  /// Decode rows that a graph is made for: all slots, but no more than pay.
  int max_graph_rows() const { return std::min(graph_rows(slots), 512); }
  /// Rows of the graph that serves `rows` rows: padded to some sizes, so that there are few graphs.
  static int graph_rows(int rows) {
    if (rows <= 16) return rows <= 1 ? 1 : rows <= 2 ? 2 : rows <= 4 ? 4 : rows <= 8 ? 8 : 16;
    const int unit = rows <= 128 ? 16 : 64;
    return (rows + unit - 1) / unit * unit;
  }

  int n_layers() const { return last_layer - first_layer; }
  int max_blocks() const { return (context + block_size - 1) / block_size; }  ///< of one sequence
};

/// Rows of the LM head that are computed at a time: it bounds the logits, however many positions a step samples.
inline constexpr int kHeadRows = 128;

/// Device memory of the weights of layers [first_layer, last_layer), and of what they need beside them.
int64_t weight_bytes(const ModelConfig& config, const StageOptions& options);

/// Device memory of one KV block, all of the stage's layers.
int64_t kv_block_bytes(const ModelConfig& config, const StageOptions& options);

/// Device memory of activations, logits and the tables per slot. It grows with max_tokens and slots.
int64_t workspace_bytes(const ModelConfig& config, const StageOptions& options);

}  // namespace pipeinfer

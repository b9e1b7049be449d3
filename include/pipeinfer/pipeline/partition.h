// Which layers each stage holds.
#pragma once

#include <cstdint>
#include <vector>

namespace pipeinfer {

/// What the model costs a stage. Times are relative: decoding reads every weight once, so bytes stand for time.
struct PartitionModel {
  int n_layers = 0;
  int64_t layer_bytes = 0;  ///< weights of one decoder layer, in the serving dtype
  int64_t head_bytes = 0;   ///< final norm and LM head, on the last stage
  int64_t embed_bytes = 0;  ///< embedding table, on the first stage: takes memory, costs no time
  bool tied = false;        ///< the head is the embedding table: a single stage holds it once
};

/// first[s] to first[s + 1] - 1 are stage s's layers; size stages + 1.
using StageLayers = std::vector<int>;

/// Modelled time of a stage in layers: its layers, and on the last stage head_bytes / layer_bytes.
double stage_cost(const PartitionModel& model, const StageLayers& layers, int stage);

/// Bytes of weights that a stage holds.
int64_t stage_weight_bytes(const PartitionModel& model, const StageLayers& layers, int stage);

/// The partition with the least largest stage cost among those where stage s's weights fit `capacity[s]` bytes; among
/// equals the most even one (least sum of squares), then the one with more layers on earlier stages. Deterministic.
/// Throws Error(usage) where there are more stages than layers, or nothing fits (naming the stage's bytes).
StageLayers auto_partition(const PartitionModel& model, const std::vector<int64_t>& capacity);

/// From the layers of each stage. Throws Error(usage) where they do not add up to the layers and stages.
StageLayers explicit_partition(const std::vector<int64_t>& counts, int n_layers, int n_stages);

}  // namespace pipeinfer

// How a run is laid out over its ranks: decided once by rank 0, obeyed by all.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "pipeinfer/batch/step_plan.h"
#include "pipeinfer/pipeline/partition.h"
#include "pipeinfer/sched/scheduler.h"

namespace pipeinfer {

struct Layout {
  StageLayers layers;         ///< rank r is stage r
  SchedulerConfig scheduler;  ///< lanes, batch, blocks: the smallest pool of all stages
  int vocab_size = 0;

  int n_stages() const { return static_cast<int>(layers.size()) - 1; }
  bool is_last(int stage) const { return stage == n_stages() - 1; }

  /// Most tokens of a step: a chunk of prompt, and one token for each sequence that decodes.
  int max_tokens() const { return scheduler.prefill_chunk + scheduler.batch_size; }
  /// Most steps between a plan and its result, over all lanes.
  int max_in_flight() const { return scheduler.lanes * scheduler.steps_ahead; }
  PlanLimits limits() const;

  std::vector<std::byte> serialize() const;
  static Layout parse(std::span<const std::byte> bytes);
};

}  // namespace pipeinfer

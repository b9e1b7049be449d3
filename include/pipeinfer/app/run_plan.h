// The layout of a run and its memory, computed before anything is allocated: what `describe` shows is what `run` does.
#pragma once

#include <string>
#include <vector>

#include "pipeinfer/config/model_config.h"
#include "pipeinfer/config/run_config.h"
#include "pipeinfer/device/device.h"
#include "pipeinfer/model/stage_options.h"
#include "pipeinfer/pipeline/layout.h"

namespace pipeinfer {

/// What a rank brings.
struct RankResources {
  std::string host;
  DeviceKind kind = DeviceKind::cpu;
  DeviceInfo device;
  std::string
      cores;  ///< the CPUs that the rank may run on, as text: ranks of a host with the same text share them
  int n_cores = 1;

  std::vector<std::byte> serialize() const;
  static RankResources parse(std::span<const std::byte> bytes);
};

/// Of this process and `device`, on host `host`.
RankResources local_resources(const std::string& host, Device device);

/// One stage's memory, in bytes.
struct StageMemory {
  int64_t available = 0;  ///< free on the device, over the ranks that share it
  int64_t weights = 0;
  int64_t workspace = 0;
  int64_t kv_block = 0;  ///< of one KV block
  int64_t kv_pool = 0;   ///< of all of them
};

struct RunPlan {
  Layout layout;
  DType dtype = DType::fp32;
  std::vector<StageMemory> stages;
  std::vector<int> threads;  ///< CPU threads of each rank

  /// What stage `stage` is built for.
  StageOptions stage_options(int stage) const;
};

/// How rank 0 lays the run out; pure: the same input gives the same plan. Throws Error(usage): more stages than
/// layers, a partition that does not add up, a stage that does not fit, ranks of different kinds of device.
RunPlan plan_run(const ModelConfig& model, const RunConfig& run, const std::vector<RankResources>& ranks);

/// What can be said of the stages before any rank is asked. Throws Error(usage) as plan_run does, and where
/// pipeline_parallel_size is not `n_stages`.
void check_stages(const ModelConfig& model, const RunConfig& run, int n_stages);

/// The plan as a table for people.
std::string plan_text(const ModelConfig& model, const RunPlan& plan);

}  // namespace pipeinfer

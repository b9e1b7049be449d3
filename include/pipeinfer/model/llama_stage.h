// A stage of a LlamaForCausalLM (Touvron et al. 2023, arXiv:2302.13971) as LibTorch modules behind `Stage`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "pipeinfer/batch/stage.h"
#include "pipeinfer/device/device.h"
#include "pipeinfer/model/stage_options.h"

namespace pipeinfer {

class Checkpoint;

/// Instead of a checkpoint: normal weights made up in place, finite through any number of layers.
struct RandomWeights {
  uint64_t seed = 0;
};

class LlamaStage final : public Stage {
 public:
  /// Allocates everything and reads this stage's tensors. The device must be current (use_device). Throws Error(usage)
  /// that names file, tensor, expected and found, and Error(failed) where memory does not suffice.
  LlamaStage(const ModelConfig& config, const StageOptions& options, const Checkpoint& checkpoint,
             Device device);
  LlamaStage(const ModelConfig& config, const StageOptions& options, RandomWeights weights, Device device);
  ~LlamaStage() override;

  /// On a GPU, runs prefill steps of several numbers of tokens up to the most, for nothing, and captures decode steps as
  /// CUDA graphs, one a number of rows, after a run of each: from then on `run` replays them for its decode rows. From the
  /// thread that will call `run`, before it does. Returns what was made, or why there are no graphs ("no CUDA graphs:
  /// ...") and all is enqueued kernel by kernel.
  std::string warm_up();

  int64_t hidden_bytes() const override;

  /// All calls of these three must name the same stream. On a GPU nothing is allocated, and the host waits only where more
  /// than `steps_in_flight` calls have not run yet.
  void prepare(const StepPlan& plan, Stream& stream) override;
  void take_tokens(const StepPlan& earlier, const int32_t* sampled, Stream& stream) override;
  void run(const StepPlan& plan, const StepBuffers& buffers, Stream& stream) override;

  /// Calls `hook` whenever logits of samples [first, first + n) of a plan were enqueued: [n, vocab] fp32 on the
  /// device, overwritten by what is enqueued later. For teacher forcing and tests.
  using LogitsHook =
      std::function<void(const StepPlan& plan, int first, int n, const float* logits, Stream& stream)>;
  void on_logits(LogitsHook hook);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Looks up every tensor of the model, headers only. Throws Error(usage) as LlamaStage does, and where the checkpoint has
/// more layers than the model.
void check_weights(const ModelConfig& config, const Checkpoint& checkpoint);

/// Threads of the CPU's matrix products, for the whole process.
void set_cpu_threads(int n);

/// LibTorch's, "2.11.0".
std::string torch_version();

}  // namespace pipeinfer

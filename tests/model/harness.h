// Stages called one after another in this process, and sequences to feed them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "pipeinfer/base/check.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/model/llama_stage.h"
#include "reference_llama.h"

namespace pipeinfer::test {

/// Where and in what precision the tests of this executable run; each executable has its own list.
struct Backend {
  std::string name;
  Device device;
  DType dtype = DType::fp32;
  double tolerance = 1e-5;  ///< of logits, relative to the largest
  bool reference = false;   ///< neither fused kernels nor CUDA graphs
};
std::vector<Backend> backends();
inline void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name; }

struct StepOutput {
  std::vector<std::vector<float>> logits;  ///< [n_samples][vocab]
  std::vector<int32_t> tokens;             ///< [n_samples]
  std::vector<TopLogit> top;               ///< [n_samples * kTopLogits] where the plan wants them
};

/// The stages of one pipeline.
class Chain {
 public:
  /// `ends` are the last layers (exclusive) of the stages. `options` says the rest.
  Chain(const ModelConfig& config, const Checkpoint& checkpoint, const std::vector<int>& ends,
        StageOptions options, const Backend& backend);

  /// Runs a step through all stages; its sampled tokens go back to the first in the next one.
  StepOutput run(const StepPlan& plan);
  LlamaStage& stage(int index) { return *stages_[index]; }

 private:
  ModelConfig config_;
  StageOptions options_;
  Stream stream_;
  std::vector<std::unique_ptr<LlamaStage>> stages_;
  std::vector<DeviceBuffer> hidden_;  // between stage i and i + 1
  DeviceBuffer sampled_, top_;
  std::optional<StepPlan> untaken_;  // whose samples the first of several stages has not taken
  StepOutput output_;
};

/// Copies to the host and waits.
template <typename T>
std::vector<T> to_host(const T* device, size_t n, Stream& stream) {
  std::vector<T> values(n);
  copy_async(values.data(), device, n * sizeof(T), stream);
  Event done(stream.device());
  done.record(stream);
  PI_CHECK(wait_until(done, 60), "the device hangs");
  return values;
}

/// A sequence as a scheduler would keep it.
struct Live {
  int32_t slot = -1;
  int32_t prompt_tokens = 0;
  std::vector<int32_t> tokens;  ///< known so far
  int32_t done = 0;             ///< positions computed
  std::vector<int32_t> blocks;
};

/// Makes plans; hands out blocks in random order.
class Planner {
 public:
  Planner(const StageOptions& options, uint64_t seed);

  StepPlan start();
  /// Opens `sequence` in `slot`.
  void open(StepPlan& plan, Live& sequence, int32_t slot);
  /// Takes slot and blocks from it: nothing is computed any more.
  void close(StepPlan& plan, Live& sequence);
  /// One token, from the slot. Only where all known tokens are computed but the last, which was just sampled.
  void decode(StepPlan& plan, Live& sequence);
  /// The next n known tokens, samples for the last n_samples of them.
  void prefill(StepPlan& plan, Live& sequence, int32_t n, int32_t n_samples);

 private:
  void grant(StepPlan& plan, Live& sequence, int32_t n);

  StageOptions options_;
  uint64_t step_ = 0;
  std::vector<int32_t> free_;
};

std::vector<int32_t> random_tokens(std::mt19937& engine, int n, int vocab);

/// max|a - b| / max|b|.
double relative_error(const std::vector<float>& a, const std::vector<double>& b);

}  // namespace pipeinfer::test

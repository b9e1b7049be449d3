// What the pipeline knows of a model: a stage runs a plan on buffers. Implemented by `model` and by the fake in tests.
#pragma once

#include <cstdint>

#include "pipeinfer/batch/step_plan.h"
#include "pipeinfer/device/device.h"

namespace pipeinfer {

/// Device buffers of one step. The stage only enqueues work on the stream; nothing is read back by it.
struct StepBuffers {
  const void* hidden_in = nullptr;  ///< [n_tokens, hidden] in the activation dtype; null on the first stage
  void* hidden_out = nullptr;       ///< [n_tokens, hidden]; null on the last stage
  int32_t* sampled = nullptr;       ///< [n_samples]; last stage only
  TopLogit* top = nullptr;          ///< [n_samples, kTopLogits]; last stage, where the plan wants them
};

class Stage {
 public:
  virtual ~Stage() = default;

  /// Bytes of one token's hidden state between stages.
  virtual int64_t hidden_bytes() const = 0;

  // The calls of a step, on one stream; steps come in order.

  /// Enqueues what does not need the step's input, which may be on its way meanwhile: applies what the plan changes. The
  /// plan is already checked. Throws Error.
  virtual void prepare(const StepPlan& plan, Stream& stream) = 0;

  /// First of several stages only: enqueues `last_token[slot] = sampled[i]` for the samples of an earlier plan, in row
  /// order (a row's last sample rules). `sampled` is [n_samples] on the device.
  virtual void take_tokens(const StepPlan& earlier, const int32_t* sampled, Stream& stream) = 0;

  /// Enqueues the rows of the plan that was prepared. A stage that is first and last also takes its own samples. Throws
  /// Error.
  virtual void run(const StepPlan& plan, const StepBuffers& buffers, Stream& stream) = 0;
};

}  // namespace pipeinfer

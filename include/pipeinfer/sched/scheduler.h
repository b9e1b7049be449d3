// Continuous batching over a paged KV cache, on rank 0. Host-only: no device, no clock, no I/O. `plan`
// decides, `commit` learns; both are called by one thread. The same submissions, plans asked for and results
// give the same plans.
//
// Admission is in order of submission: where a slot is free, and free blocks for all known tokens and one
// more, besides one for each sequence that has a slot already (without these, a full pool recomputes a third
// of its tokens instead of a twentieth: most that are admitted are evicted soon). A sequence joins the lane
// with the fewest (so no lane exceeds ceil(batch_size / lanes)) and stays until its slot is released: when it
// has ended and its last step in flight was committed. Decoding sequences get a block when a position needs
// it. Where none is free and none is about to be, the youngest sequence of all is evicted: it keeps its
// tokens, also those in flight, and waits again in front. Nothing is admitted before it, so the oldest
// sequence always gets on.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pipeinfer/batch/sequence.h"
#include "pipeinfer/batch/step_plan.h"

namespace pipeinfer {

struct SchedulerConfig {
  int lanes = 1;
  int batch_size = 64;      ///< most sequences in flight, over all lanes; also the number of slots
  int prefill_chunk = 512;  ///< most prompt tokens of a step
  int block_size = 16;      ///< tokens a KV block
  int blocks = 0;           ///< usable blocks: the smallest pool of all stages; ids 0 to blocks - 1
  int context = 0;          ///< most tokens of a sequence
  int steps_ahead = 1;      ///< steps of a lane that may be planned before the oldest one's tokens are known
  bool want_top = false;
  std::vector<int32_t> eos_ids;
};

/// Who hears of tokens and ends. Called from `commit` only; may submit.
class SchedulerEvents {
 public:
  virtual ~SchedulerEvents() = default;
  /// A new token is known, already appended to the sequence (EOS included). True: it completes a stop string,
  /// so the sequence ends with FinishReason::stop (EOS rules before stop, stop before length).
  virtual bool on_token(const Sequence& sequence) = 0;
  /// The sequence has ended; `finish` says why.
  virtual void on_finish(const Sequence& sequence) = 0;
};

struct SchedulerCounters {
  int waiting = 0;  ///< sequences without a slot
  int running = 0;  ///< sequences with a slot
  int free_blocks = 0;
  int64_t preemptions = 0;
  int64_t steps = 0;  ///< planned
};

class Scheduler {
 public:
  Scheduler(const SchedulerConfig& config, SchedulerEvents& events);
  ~Scheduler();

  /// Queues a request, served in order of submission. Returns why it can never be served (its prompt and new
  /// tokens need more blocks than there are, or exceed the context; both numbers named), or nothing.
  /// score_from and max_new_tokens exclude each other: with score_from, `top` gets the candidates at each
  /// position from it on (where want_top), the sampled tokens are not kept, and the end is
  /// FinishReason::length.
  std::optional<std::string> submit(Request request, double now_s);

  /// The next step of a lane, or nothing: the lane has no work now, or steps_ahead steps in flight. To be
  /// asked for every lane after each submit and commit, until no lane has one: a plan may give work or blocks
  /// to other lanes. Every plan must reach every stage, in step order.
  std::optional<StepPlan> plan(int lane);

  /// Tokens of the oldest step in flight of its lane (none where the plan samples none: each step has a
  /// result). That all stages have completed the step is what a result says too. Throws Error(failed) where
  /// the result fits no plan.
  void commit(const StepResult& result, double now_s);

  /// Admits nothing more; what was admitted goes on, preempted sequences too.
  void drain();

  /// Takes what is in flight and waiting out of the plans without an event; steps in flight must still be
  /// committed.
  void cancel();

  /// Nothing is in flight, and nothing waits (or nothing will be admitted any more).
  bool idle() const;
  int in_flight(int lane) const;  ///< steps planned and not committed
  SchedulerCounters counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pipeinfer

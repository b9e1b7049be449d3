// When each step was received, computed and sent on this rank, and what a stage's wall clock was spent on.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

namespace pipeinfer {

/// One step on one rank; seconds of now_s()'s clock. On stage 0 the receive is the return of sampled tokens;
/// a stage that receives or sends nothing has an empty interval.
struct StepTimes {
  uint64_t step = 0;
  int32_t lane = 0;
  int32_t n_tokens = 0;
  int32_t n_decode = 0;
  int64_t received_step =
      -1;  ///< the step whose data was received: this one, on stage 0 an earlier one; -1: nothing
  double recv_begin_s = 0, recv_end_s = 0;
  double compute_begin_s = 0, compute_end_s = 0;
  double send_begin_s = 0, send_end_s = 0;
};

/// When a sender started to send what a step needs, on the common clock.
struct SendTime {
  uint64_t step = 0;  ///< the step whose data is sent
  double begin_s = 0;
};

/// What was done since the recorder began, whatever it still keeps.
struct StepTotals {
  int64_t steps = 0;
  int64_t tokens = 0;         ///< of all rows, prompt tokens too
  int64_t decode_tokens = 0;  ///< of decode rows
  double compute_s = 0;
};

/// Keeps the newest steps of this rank. Thread-safe.
class StepRecorder {
 public:
  explicit StepRecorder(size_t most_steps = 1'000'000);
  void add(const StepTimes& times);
  /// The steps of this measurement.
  std::vector<StepTimes> steps() const;
  /// A new measurement begins: `steps` forgets what was, `all_steps` and `totals` do not.
  void clear();
  std::vector<StepTimes> all_steps() const;
  StepTotals totals() const;

 private:
  const size_t most_steps_;
  mutable std::mutex mutex_;
  std::deque<StepTimes> steps_;
  int64_t cleared_ = 0;  // steps added before this measurement
  StepTotals totals_;
};

/// Wall clock of a stage from its first receive to its last compute, in seconds; compute + exposed + idle =
/// wall.
struct StageTime {
  double wall_s = 0;
  double compute_s = 0;
  double comm_exposed_s = 0;     ///< the stage computes nothing while data it needs is on the way
  double comm_overlapped_s = 0;  ///< transfer time hidden behind its own compute
  double idle_s = 0;             ///< nothing to compute, nothing on the way: the bubble
};

/// A receive is idle until its matching send starts, communication from then on. `sent` holds what the stage
/// before this one sent, on the same clock; both are in step order.
StageTime split_stage_time(const std::vector<StepTimes>& steps, const std::vector<SendTime>& sent);

}  // namespace pipeinfer

#include "pipeinfer/trace/step_recorder.h"

#include <algorithm>

namespace pipeinfer {

StepRecorder::StepRecorder(size_t most_steps) : most_steps_(most_steps) {}

void StepRecorder::add(const StepTimes& times) {
  std::lock_guard lock(mutex_);
  ++totals_.steps;
  totals_.tokens += times.n_tokens;
  totals_.decode_tokens += times.n_decode;
  totals_.compute_s += times.compute_end_s - times.compute_begin_s;
  steps_.push_back(times);
  if (steps_.size() > most_steps_) steps_.pop_front();
}

std::vector<StepTimes> StepRecorder::steps() const {
  std::lock_guard lock(mutex_);
  const auto n = std::min<int64_t>(totals_.steps - cleared_, static_cast<int64_t>(steps_.size()));
  return {steps_.end() - n, steps_.end()};
}

void StepRecorder::clear() {
  std::lock_guard lock(mutex_);
  cleared_ = totals_.steps;
}

std::vector<StepTimes> StepRecorder::all_steps() const {
  std::lock_guard lock(mutex_);
  return {steps_.begin(), steps_.end()};
}

StepTotals StepRecorder::totals() const {
  std::lock_guard lock(mutex_);
  return totals_;
}

StageTime split_stage_time(const std::vector<StepTimes>& steps, const std::vector<SendTime>& sent) {
  StageTime time;
  if (steps.empty()) return time;
  time.wall_s = steps.back().compute_end_s - steps.front().recv_begin_s;
  double free_since_s = steps.front().recv_begin_s;  // the stage computes nothing since then
  for (const StepTimes& step : steps) {
    time.compute_s += step.compute_end_s - step.compute_begin_s;
    const double gap_s = std::max(0.0, step.compute_begin_s - free_since_s);
    double comm_s = 0, exposed_s = 0;
    const auto match =
        std::lower_bound(sent.begin(), sent.end(), step.received_step,
                         [](const SendTime& s, int64_t step) { return int64_t(s.step) < step; });
    if (match != sent.end() && int64_t(match->step) == step.received_step) {
      const double begin_s = std::clamp(match->begin_s, step.recv_begin_s, step.recv_end_s);
      comm_s = step.recv_end_s - begin_s;
      exposed_s = std::clamp(step.recv_end_s - std::max(begin_s, free_since_s), 0.0, gap_s);
    }
    time.comm_exposed_s += exposed_s;
    time.comm_overlapped_s += comm_s - exposed_s;
    time.idle_s += gap_s - exposed_s;
    free_since_s = step.compute_end_s;
  }
  return time;
}

}  // namespace pipeinfer

// Rank 0's loop: plans go out, results come back; and the loop of all other ranks.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "pipeinfer/pipeline/report.h"
#include "pipeinfer/sched/scheduler.h"

namespace pipeinfer {

/// Rank 0. Plans every lane as far ahead as the scheduler allows, sends each plan to all stages before executing its
/// own part, and commits results as they come.
class Coordinator {
 public:
  Coordinator(RankContext& rank, const Layout& layout, StageWorker& worker, SchedulerEvents& events);

  Scheduler& scheduler() { return scheduler_; }

  /// Serves until nothing is left. `tick` is called between steps, at least every 50 ms while steps are short. On a
  /// stop request nothing more is admitted; what is in flight after `grace_s` more seconds is given up. True: stopped.
  bool serve(double grace_s, const std::function<void()>& tick);

 private:
  bool commit_results();
  bool plan_lanes();

  RankContext& rank_;
  StageWorker& worker_;
  Scheduler scheduler_;
  const int n_lanes_;
  int next_lane_ = 0;
  std::map<uint64_t, double> planned_s_;  // steps in flight: when they were planned
};

/// All other ranks: executes plans until the last report is answered. `tick` is called between steps.
void serve_stage(RankContext& rank, StageWorker& worker, const std::function<void()>& tick);

}  // namespace pipeinfer

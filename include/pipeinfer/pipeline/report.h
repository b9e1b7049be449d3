// What each stage's wall clock was spent on, gathered by rank 0 on its own clock.
#pragma once

#include <vector>

#include "pipeinfer/pipeline/stage_worker.h"

namespace pipeinfer {

struct StageReport {
  int rank = 0;
  int64_t steps = 0;
  StageTime time;
  double median_step_s = 0;      ///< compute of a step
  DeviceUse use;                 ///< of the rank's device, at the time of the report
  std::vector<StepTimes> trace;  ///< on rank 0's clock; only where asked for
};

/// Rank 0, while no step is in flight: asks every rank for its report since the last one (see answer_report).
/// `last`: serving ends with it.
std::vector<StageReport> gather_reports(RankContext& rank, StageWorker& worker, bool last, bool want_trace);

/// Other ranks: answers the Tag::finish message that asks for a report. True where it was the last one.
bool answer_report(RankContext& rank, StageWorker& worker, const Message& request);

}  // namespace pipeinfer

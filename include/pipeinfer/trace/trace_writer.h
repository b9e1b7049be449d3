// trace.json: what every rank did when, for Perfetto (https://ui.perfetto.dev).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "pipeinfer/trace/step_recorder.h"

namespace pipeinfer {

struct RankTrace {
  int rank = 0;
  std::string name;              ///< as shown, e.g. "rank 0: layers 0-12, NVIDIA H200"
  std::vector<StepTimes> steps;  ///< in step order, all ranks on one clock
};

/// Writes the file in the Chrome trace-event format ("JSON Object Format" of the Trace Event Format
/// document): a process a rank, and a track each for what it receives, computes and sends. Times are
/// microseconds since the earliest. Events of a track are cut where they would overlap (clocks of a GPU and
/// its host differ by some microseconds): a viewer nests what overlaps. Throws Error(failed) where it cannot
/// be written.
void write_trace(const std::string& path, std::span<const RankTrace> ranks);

}  // namespace pipeinfer

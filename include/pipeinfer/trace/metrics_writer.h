// metrics_rank_<r>.jsonl: what this rank does over time, one object a line.
#pragma once

#include <fstream>
#include <span>
#include <string>

#include "pipeinfer/device/device.h"
#include "pipeinfer/trace/step_recorder.h"

namespace pipeinfer {

/// What else the caller wants in a line, e.g. {"waiting", 3}.
struct Figure {
  const char* name;
  double value;
};

/// Every line has `kind`, `at_s` (since the writer was made), `steps`, `tokens` and `decode_tokens` (totals
/// of the recorder), `tokens_per_s` and `compute_percent` (tokens of all rows, and the share of time that the
/// device computed steps; of a sample since the line before, of the summary on the whole),
/// `device_busy_percent` and `device_used_bytes` (device_use), and the caller's figures. The summary also has
/// the percentiles of the steps' compute time, `step_ms_p50`, `step_ms_p90` and `step_ms_p99`.
class MetricsWriter {
 public:
  /// Appends to `path`. Throws Error(usage) where it cannot be opened.
  MetricsWriter(const std::string& path, const StepRecorder& recorder, Device device, double every_s);

  /// Writes a sample where `every_s` have passed since the last line. Throws Error(failed) where it cannot.
  void tick(std::span<const Figure> figures);

  /// Writes the last line.
  void finish(std::span<const Figure> figures);

 private:
  void write(const char* kind, double now, double since, const StepTotals& before,
             std::span<const Figure> figures);

  const std::string path_;
  const StepRecorder& recorder_;
  const Device device_;
  const double every_s_;
  const double begun_s_;
  double last_s_;
  StepTotals last_;  // at the last line
  std::ofstream out_;
};

}  // namespace pipeinfer

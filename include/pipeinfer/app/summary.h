// What a run amounted to: summary.json, summary.csv and the closing line.
#pragma once

#include <string>
#include <vector>

#include "pipeinfer/app/completion_sink.h"
#include "pipeinfer/app/engine.h"
#include "pipeinfer/app/requests.h"

namespace pipeinfer {

struct RunFigures {
  double wall_s = 0;
  double preprocess_s = 0;  ///< prompts read and tokenized
  double load_s = 0;        ///< from the start of loading to all ranks ready
  double serve_s = 0;
  int64_t requests_rejected = 0;  ///< by this attempt
  EarlierAttempts earlier;
  bool stopped = false;
  CompletionCounts counts;
  SchedulerCounters scheduler;
  std::vector<StageReport> reports;  ///< empty where nothing was left to serve
  std::vector<RankResources> ranks;
  std::vector<LoadFigures> loads;
};

/// Writes summary.json and summary.csv (the same in columns, one line a rank) to `output_dir`. Throws Error(failed).
void write_summary(const std::string& output_dir, const RunConfig& run, const RunPlan* plan,
                   const RunFigures& figures);

/// New tokens a second between the first and the last new token of the run.
double decode_rate(const CompletionCounts& counts);

/// "10 prompts, 640 tokens in 3.1 s; decode: 206.5 tok/s, ...": `bytes_per_step` as decode_bytes says,
/// `limit_gbps` of all ranks.
std::string closing_line(const RunFigures& figures, double bytes_per_step, double limit_gbps);

/// Bytes that a decode step of `sequences` sequences with `context` tokens each reads: weights (the embedding counts as
/// its rows) and K and V, over all stages.
double decode_bytes(const ModelConfig& model, DType dtype, double sequences, double context);

}  // namespace pipeinfer

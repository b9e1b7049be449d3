#include "pipeinfer/app/summary.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "pipeinfer/comm/launch.h"
#include "pipeinfer/comm/nccl.h"
#include "pipeinfer/io/output_dir.h"
#include "pipeinfer/trace/percentiles.h"

namespace pipeinfer {

namespace {

using nlohmann::ordered_json;

ordered_json percentiles_json(const std::vector<double>& values) {
  const Percentiles p = percentiles(values);
  return {{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}};
}

ordered_json rank_json(const RunFigures& figures, const RunPlan& plan, size_t r) {
  const StageReport& report = figures.reports[r];
  const StageTime& time = report.time;
  return {{"rank", r},
          {"host", figures.ranks[r].host},
          {"device", figures.ranks[r].device.name},
          {"layers", cat(plan.layout.layers[r], "-", plan.layout.layers[r + 1] - 1)},
          {"steps", report.steps},
          {"wall_s", time.wall_s},
          {"compute_s", time.compute_s},
          {"comm_exposed_s", time.comm_exposed_s},
          {"comm_overlapped_s", time.comm_overlapped_s},
          {"idle_s", time.idle_s},
          {"median_step_s", report.median_step_s},
          {"load_s", figures.loads[r].seconds},
          {"warm_up_s", figures.loads[r].warm_up_s},
          {"load_bytes", figures.loads[r].bytes},
          {"busy_percent", report.use.busy_percent},
          {"used_bytes", report.use.used_bytes},
          {"weight_bytes", plan.stages[r].weights},
          {"kv_bytes", plan.stages[r].kv_pool}};
}

// The libraries that the figures depend on; null where the build has none.
ordered_json versions_json() {
  const auto or_null = [](const std::string& version) {
    return version.empty() ? ordered_json(nullptr) : ordered_json(version);
  };
  return {{"pipeinfer", PIPEINFER_VERSION},
          {"libtorch", torch_version()},
          {"mpi", mpi_version()},
          {"nccl", or_null(nccl_version())}};
}

using Columns = std::vector<std::pair<std::string, std::string>>;  // name and cell

// RFC 4180: quotes around what holds a comma, a quote or an end of line.
std::string cell(const ordered_json& value) {
  std::string text = value.is_string() ? value.get<std::string>() : value.is_null() ? "" : value.dump();
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  for (size_t at = 0; (at = text.find('"', at)) != std::string::npos; at += 2) text.insert(at, 1, '"');
  return '"' + text + '"';
}

// "config.inference.seed" for an object in an object.
void flatten(const ordered_json& object, const std::string& prefix, Columns& columns) {
  for (const auto& [name, value] : object.items()) {
    if (value.is_object())
      flatten(value, prefix + name + ".", columns);
    else
      columns.emplace_back(prefix + name, cell(value));
  }
}

// A line a rank (one line where none served): what the run and its ranks have in common, then the rank's own.
std::string csv_of(ordered_json summary) {
  ordered_json ranks = std::move(summary["ranks"]);
  summary.erase("ranks");
  if (ranks.empty()) ranks.push_back(ordered_json::object());
  std::string csv;
  for (const ordered_json& rank : ranks) {
    Columns columns;
    flatten(summary, "", columns);
    flatten(rank, "rank.", columns);
    std::string names, cells;
    for (const auto& [name, text] : columns) {
      names += (names.empty() ? "" : ",") + name;
      cells += (cells.empty() ? "" : ",") + text;
    }
    csv += (csv.empty() ? names + "\n" : "") + cells + "\n";
  }
  return csv;
}

}  // namespace

double decode_rate(const CompletionCounts& counts) {
  const double span_s = counts.last_token_s - counts.first_token_s;
  return span_s > 0 ? static_cast<double>(counts.tokens_generated) / span_s : 0;
}

double decode_bytes(const ModelConfig& model, DType dtype, double sequences, double context) {
  const auto weights = static_cast<double>(model.n_layers * model.layer_parameters() +
                                           model.head_parameters() + model.norm_parameters());
  const double embedded = sequences * model.hidden_size;
  const double kv = sequences * context * static_cast<double>(model.n_layers * model.kv_elements());
  return static_cast<double>(dtype_size(dtype)) * (weights + embedded + kv);
}

std::string closing_line(const RunFigures& figures, double bytes_per_step, double limit_gbps) {
  const CompletionCounts& counts = figures.counts;
  const double rate = decode_rate(counts);
  const double span_s = counts.last_token_s - counts.first_token_s;
  const double step_s =
      figures.scheduler.steps > 0 ? span_s / static_cast<double>(figures.scheduler.steps) : 0;
  const double gbps = step_s > 0 ? bytes_per_step / step_s / 1e9 : 0;
  char text[240];
  std::snprintf(text, sizeof text,
                "%s, %s in %.2f s; decode: %.1f tok/s, %.2f ms/token, %.2f GB/s, %.0f%% of the %.1f GB/s "
                "that %s can read",
                counted(counts.done, "prompt").c_str(), counted(counts.tokens_generated, "token").c_str(),
                figures.serve_s, rate, 1e3 * percentiles(counts.token_latency_s).p50, gbps,
                limit_gbps > 0 ? 100 * gbps / limit_gbps : 0.0, limit_gbps,
                counted(static_cast<long long>(figures.ranks.size()), "rank").c_str());
  return text;
}

void write_summary(const std::string& output_dir, const RunConfig& run, const RunPlan* plan,
                   const RunFigures& figures) {
  const CompletionCounts& counts = figures.counts;
  ordered_json ranks = ordered_json::array();
  double compute_s = 0, exposed_s = 0, overlapped_s = 0, idle_s = 0;
  for (size_t r = 0; r < figures.reports.size(); ++r) {
    ranks.push_back(rank_json(figures, *plan, r));
    compute_s += figures.reports[r].time.compute_s;
    exposed_s += figures.reports[r].time.comm_exposed_s;
    overlapped_s += figures.reports[r].time.comm_overlapped_s;
    idle_s += figures.reports[r].time.idle_s;
  }
  const ordered_json summary = {
      {"versions", versions_json()},
      {"config", ordered_json::parse(run_config_json(run))},
      {"wall_s", figures.wall_s},
      {"preprocess_s", figures.preprocess_s},
      {"load_s", figures.load_s},
      {"serve_s", figures.serve_s},
      {"compute_s", compute_s},
      {"comm_exposed_s", exposed_s},
      {"comm_overlapped_s", overlapped_s},
      {"idle_s", idle_s},
      {"stopped", figures.stopped},
      {"requests_done", figures.earlier.done + counts.done},
      {"requests_rejected", figures.earlier.rejected + figures.requests_rejected},
      {"prompt_tokens", figures.earlier.prompt_tokens + counts.prompt_tokens},
      {"tokens_generated", figures.earlier.tokens_generated + counts.tokens_generated},
      {"decode_tok_s", decode_rate(counts)},
      {"ttft_s", percentiles_json(counts.ttft_s)},
      {"token_latency_s", percentiles_json(counts.token_latency_s)},
      {"preemptions", figures.scheduler.preemptions},
      {"steps", figures.scheduler.steps},
      {"lanes", plan ? plan->layout.scheduler.lanes : 0},
      {"kv_blocks", plan ? plan->layout.scheduler.blocks : 0},
      {"precision", plan ? dtype_name(plan->dtype) : ""},
      {"ranks", ranks}};
  write_file(output_dir + "/summary.json", summary.dump(2) + "\n");

  write_file(output_dir + "/summary.csv", csv_of(summary));
}

}  // namespace pipeinfer

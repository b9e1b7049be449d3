#include "pipeinfer/app/summary.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "pipeinfer/io/output_dir.h"
#include "pipeinfer/trace/percentiles.h"

namespace pipeinfer {

namespace {

nlohmann::json percentiles_json(const std::vector<double>& values) {
  const Percentiles p = percentiles(values);
  return {{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}};
}

nlohmann::json rank_json(const RunFigures& figures, const RunPlan& plan, size_t r) {
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
          {"load_bytes", figures.loads[r].bytes},
          {"busy_percent", report.use.busy_percent},
          {"used_bytes", report.use.used_bytes},
          {"weight_bytes", plan.stages[r].weights},
          {"kv_bytes", plan.stages[r].kv_pool}};
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
  std::snprintf(
      text, sizeof text,
      "%s, %s in %.2f s: %.1f tok/s, %.2f ms/token, %.2f GB/s, %.0f%% of the %.1f GB/s that %s can read",
      counted(counts.done, "prompt").c_str(), counted(counts.tokens_generated, "token").c_str(),
      figures.serve_s, rate, 1e3 * percentiles(counts.token_latency_s).p50, gbps,
      limit_gbps > 0 ? 100 * gbps / limit_gbps : 0.0, limit_gbps,
      counted(static_cast<long long>(figures.ranks.size()), "rank").c_str());
  return text;
}

void write_summary(const std::string& output_dir, const RunConfig& run, const RunPlan* plan,
                   const RunFigures& figures) {
  const CompletionCounts& counts = figures.counts;
  nlohmann::json ranks = nlohmann::json::array();
  double compute_s = 0, exposed_s = 0, overlapped_s = 0, idle_s = 0;
  for (size_t r = 0; r < figures.reports.size(); ++r) {
    ranks.push_back(rank_json(figures, *plan, r));
    compute_s += figures.reports[r].time.compute_s;
    exposed_s += figures.reports[r].time.comm_exposed_s;
    overlapped_s += figures.reports[r].time.comm_overlapped_s;
    idle_s += figures.reports[r].time.idle_s;
  }
  const nlohmann::json summary = {{"version", PIPEINFER_VERSION},
                                  {"config", nlohmann::json::parse(run_config_json(run))},
                                  {"wall_s", figures.wall_s},
                                  {"preprocess_s", figures.preprocess_s},
                                  {"load_s", figures.load_s},
                                  {"serve_s", figures.serve_s},
                                  {"compute_s", compute_s},
                                  {"comm_exposed_s", exposed_s},
                                  {"comm_overlapped_s", overlapped_s},
                                  {"idle_s", idle_s},
                                  {"stopped", figures.stopped},
                                  {"requests_done", figures.earlier_done + counts.done},
                                  {"requests_rejected", figures.requests_rejected},
                                  {"prompt_tokens", counts.prompt_tokens},
                                  {"tokens_generated", counts.tokens_generated},
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

  std::string csv;
  for (const auto& rank : ranks) {
    std::string names, values;
    for (const auto& [name, value] : rank.items()) {
      names += (names.empty() ? "" : ",") + name;
      values += (values.empty() ? "" : ",") + value.dump();
    }
    if (csv.empty()) csv = names + "\n";
    csv += values + "\n";
  }
  write_file(output_dir + "/summary.csv", csv);
}

}  // namespace pipeinfer

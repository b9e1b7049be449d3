#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "pipeinfer/app/commands.h"
#include "pipeinfer/app/summary.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/kernels/limits.h"

namespace pipeinfer {

namespace {

constexpr size_t kReadBytesGpu = size_t{4} << 30, kReadBytesCpu = size_t{1} << 30;

// First tokens and the last one, over all sequences of a measurement.
class BenchEvents : public SchedulerEvents {
 public:
  bool on_token(const Sequence& sequence) override {
    last_token_s = now_s();
    if (sequence.new_tokens() == 1) latest_first_s = last_token_s;
    return false;
  }
  void on_finish(const Sequence&) override { ++finished; }

  double latest_first_s = 0, last_token_s = 0;
  int64_t finished = 0;
};

struct Case {
  int64_t batch, prompt, fresh;  // sequences, prompt tokens, new tokens
};

std::vector<Request> synthetic_requests(const Case& c, int vocab_size) {
  std::mt19937 rng(1);
  std::vector<Request> requests(c.batch);
  for (int64_t i = 0; i < c.batch; ++i) {
    requests[i].prompt_index = i;
    requests[i].id = cat("bench-", i);
    requests[i].max_new_tokens = static_cast<int32_t>(c.fresh);
    requests[i].ignore_eos = true;
    for (int64_t t = 0; t < c.prompt; ++t) requests[i].prompt_tokens.push_back(rng() % vocab_size);
  }
  return requests;
}

// Operations of a prompt's prefill: the layers' products, and attention of each token to those before it.
double prefill_flop(const ModelConfig& model, double prompt) {
  const double layer = 2 * static_cast<double>(model.layer_parameters()) * prompt +
                       4 * static_cast<double>(model.q_size()) * prompt * (prompt + 1) / 2;
  return model.n_layers * layer + 2 * static_cast<double>(model.head_parameters());
}

// Share of its time that the average stage works, where every stage takes as long as it has bytes to read: the best
// whole-layer partition, K and V of `sequences` sequences included.
double pipeline_ceiling(const ModelConfig& model, DType dtype, int n_stages, double sequences,
                        double context) {
  const double size = static_cast<double>(dtype_size(dtype));
  const PartitionModel costs{
      .n_layers = model.n_layers,
      .layer_bytes =
          static_cast<int64_t>(size * (static_cast<double>(model.layer_parameters()) +
                                       sequences * context * static_cast<double>(model.kv_elements()))),
      .head_bytes = static_cast<int64_t>(size) * (model.head_parameters() + model.norm_parameters()),
      .embed_bytes = 0};
  const StageLayers layers = auto_partition(costs, std::vector<int64_t>(n_stages, int64_t{1} << 50));
  double sum = 0, most = 0;
  for (int s = 0; s < n_stages; ++s) {
    sum += stage_cost(costs, layers, s);
    most = std::max(most, stage_cost(costs, layers, s));
  }
  return sum / (n_stages * most);
}

class Bench {
 public:
  Bench(App& app, const Command& command, const ModelConfig& model, const RunConfig& run)
      : app_(app),
        command_(command),
        model_(model),
        begin_s_(now_s()),
        engine_(app, run, model, command.shape.empty() ? run.model_path : "", false),
        coordinator_(engine_.coordinate(events_)) {
    const Device device = engine_.device();
    read_limit_gbps_ =
        read_limit_gbps(device, device.is_cuda() ? kReadBytesGpu : kReadBytesCpu, engine_.plan().threads[0]);
    gemm_tflops_ = gemm_rate_tflops(device, engine_.plan().dtype);
    if (!command.json_file.empty()) {
      json_.open(command.json_file, std::ios::trunc);
      if (!json_) usage_error(cat("cannot write ", command.json_file));
    }
  }

  ExitCode sweep() {
    serve({1, 8, 2});  // warms up
    const double warmup_s = now_s() - begin_s_;
    std::printf("%6s %7s %5s %9s %14s %9s %13s %9s %9s\n", "batch", "prompt", "new", "TTFT s",
                "prefill tok/s", "% GEMM", "decode tok/s", "ms/step", "% limit");
    for (int64_t batch : command_.batch_sizes)
      for (int64_t prompt : command_.prompt_tokens)
        for (int64_t fresh : command_.new_tokens) {
          if (app_.watchdog.stop_requested()) return finish(ExitCode::stopped);
          measure({batch, prompt, fresh}, warmup_s);
        }
    return finish(ExitCode::ok);
  }

 private:
  double serve(const Case& c) {
    engine_.reports(false, false);  // a new measurement
    events_.finished = 0;
    const double begin_s = now_s();
    for (Request& request : synthetic_requests(c, model_.vocab_size))
      if (auto why = coordinator_.scheduler().submit(std::move(request), begin_s)) usage_error(*why);
    coordinator_.serve(0, [] {});
    return begin_s;
  }

  void measure(const Case& c, double warmup_s) {
    const int64_t steps_before = coordinator_.scheduler().counters().steps;
    const double begin_s = serve(c);
    const auto reports = engine_.reports(false, false);
    if (events_.finished < c.batch) return;  // stopped
    const RunPlan& plan = engine_.plan();
    const int n = app_.job.size(), lanes = plan.layout.scheduler.lanes;
    const double ttft_s = events_.latest_first_s - begin_s;
    const double decode_s = events_.last_token_s - events_.latest_first_s;
    const double decode_tok_s = c.fresh > 1 ? static_cast<double>(c.batch * (c.fresh - 1)) / decode_s : 0;
    const double used_lanes = std::min<double>(lanes, static_cast<double>(c.batch));
    const double sequences = static_cast<double>(c.batch) / used_lanes;  // of a step
    const double context = static_cast<double>(c.prompt) + static_cast<double>(c.fresh) / 2;
    const double bytes = decode_bytes(model_, plan.dtype, sequences, context);
    const double limit_tok_s = std::min<double>(n, used_lanes) * sequences * read_limit_gbps_ * 1e9 / bytes;
    const double ms_per_step = c.fresh > 1 ? 1e3 * decode_s / static_cast<double>(c.fresh - 1) : 0;
    const double percent = limit_tok_s > 0 ? 100 * decode_tok_s / limit_tok_s : 0;
    const double gemm_percent = gemm_tflops_ > 0 ? 100 * static_cast<double>(c.batch) *
                                                       prefill_flop(model_, static_cast<double>(c.prompt)) /
                                                       (ttft_s * gemm_tflops_ * 1e12 * n)
                                                 : 0;
    std::printf("%6lld %7lld %5lld %9.3f %14.1f %9.1f %13.1f %9.3f %9.1f\n", static_cast<long long>(c.batch),
                static_cast<long long>(c.prompt), static_cast<long long>(c.fresh), ttft_s,
                static_cast<double>(c.batch * c.prompt) / ttft_s, gemm_percent, decode_tok_s, ms_per_step,
                percent);
    std::fflush(stdout);
    if (!json_.is_open()) return;
    nlohmann::json stages = nlohmann::json::array();
    for (const StageReport& r : reports) {
      const double steps = static_cast<double>(std::max<int64_t>(1, r.steps));
      stages.push_back({{"rank", r.rank},
                        {"layers", plan.layout.layers[r.rank + 1] - plan.layout.layers[r.rank]},
                        {"step_ms", 1e3 * r.time.wall_s / steps},
                        {"compute_ms", 1e3 * r.time.compute_s / steps},
                        {"comm_ms", 1e3 * (r.time.comm_exposed_s + r.time.comm_overlapped_s) / steps},
                        {"idle_ms", 1e3 * r.time.idle_s / steps}});
    }
    json_ << nlohmann::json{{"batch_size", c.batch},
                            {"prompt_tokens", c.prompt},
                            {"new_tokens", c.fresh},
                            {"ranks", n},
                            {"lanes", lanes},
                            {"ttft_s", ttft_s},
                            {"prefill_tok_s", static_cast<double>(c.batch * c.prompt) / ttft_s},
                            {"decode_tok_s", decode_tok_s},
                            {"ms_per_step", ms_per_step},
                            {"steps", coordinator_.scheduler().counters().steps - steps_before},
                            {"bytes_per_step", bytes},
                            {"read_limit_gbps", read_limit_gbps_},
                            {"gemm_tflops", gemm_tflops_},
                            {"percent_of_gemm", gemm_percent},
                            {"limit_tok_s", limit_tok_s},
                            {"percent_of_limit", percent},
                            {"pp_ceiling", pipeline_ceiling(model_, plan.dtype, n, sequences, context)},
                            {"warmup_s", warmup_s},
                            {"stages", stages}}
                 .dump()
          << '\n'
          << std::flush;
    if (!json_) runtime_failure(cat("cannot write ", command_.json_file));
  }

  ExitCode finish(ExitCode code) {
    engine_.reports(true, false);
    engine_.close();
    return code;
  }

  App& app_;
  const Command& command_;
  const ModelConfig& model_;
  const double begin_s_;
  BenchEvents events_;
  Engine engine_;
  Coordinator coordinator_;
  double read_limit_gbps_ = 0;
  double gemm_tflops_ = 0;
  std::ofstream json_;
};

}  // namespace

ExitCode bench_command(App& app, const Command& command) {
  RunConfig run = command.config;
  const ModelConfig model =
      command.shape.empty() ? load_model_config(run.model_path) : model_shape(command.shape);
  run.batch_size = *std::max_element(command.batch_sizes.begin(), command.batch_sizes.end());
  const auto longest = [](const std::vector<int64_t>& list) {
    return *std::max_element(list.begin(), list.end());
  };
  if (const int64_t most = longest(command.prompt_tokens) + longest(command.new_tokens);
      most > model.context())
    usage_error(
        cat("--prompt-tokens and --new-tokens add up to ", most, ", the context is ", model.context()));
  if (!app.root()) {
    Engine engine(app, run, model, command.shape.empty() ? run.model_path : "", false);
    engine.serve([] {});
    engine.close();
    return ExitCode::ok;
  }
  check_stages(model, run, app.job.size());
  begin(app, true);
  return Bench(app, command, model, run).sweep();
}

}  // namespace pipeinfer

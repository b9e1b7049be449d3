#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "pipeinfer/app/commands.h"
#include "pipeinfer/app/progress.h"
#include "pipeinfer/app/requests.h"
#include "pipeinfer/app/summary.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/hash.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/config/world.h"
#include "pipeinfer/io/output_dir.h"
#include "pipeinfer/kernels/read_limit.h"
#include "pipeinfer/trace/metrics_writer.h"
#include "pipeinfer/trace/trace_writer.h"

namespace pipeinfer {

namespace {

constexpr double kMetricsEveryS = 10;
constexpr size_t kReadLimitBytes = size_t{256} << 20;  // enough to leave the caches of a CPU, quick to read

std::string file_hash(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return hex64(hash64(text.str()));
}

std::string rank_file(const RunConfig& run, const char* stem, int rank, const char* ending) {
  return cat(run.output_dir, "/", stem, rank, ending);
}

// What rank 0 knows of the prompts before anything is loaded.
struct Inputs {
  PromptFile file;
  std::unique_ptr<Tokenizer> tokenizer;  // null: every prompt is token ids, and there is no tokenizer
  std::vector<Request> requests;
  std::vector<CompletionRecord> rejected;
  int64_t earlier_done = 0, earlier_rejected = 0;
};

PromptFile single_prompt(const std::string& text) {
  PromptRecord prompt;
  prompt.id = "prompt";
  prompt.line = 1;
  prompt.prompt = text;
  return {{prompt}, {}};
}

Inputs read_inputs(App& app, const Command& command, const ModelConfig& model) {
  const RunConfig& run = command.config;
  Inputs inputs;
  if (command.prompt)
    inputs.file = single_prompt(*command.prompt);
  else
    inputs.file = read_prompts(run.prompt_path, model.vocab_size, {run.variant, run.limit},
                               [&](const std::string& text) { app.log.warn(text); });
  const bool needs_text =
      std::any_of(inputs.file.prompts.begin(), inputs.file.prompts.end(),
                  [](const auto& prompt) { return !prompt.rejected() && !prompt.prompt_token_ids; });
  if (needs_text || Tokenizer::exists(run.tokenizer()))
    inputs.tokenizer = std::make_unique<Tokenizer>(run.tokenizer(), model);
  return inputs;
}

Manifest make_manifest(const RunConfig& run, const Inputs& inputs, const Checkpoint& checkpoint) {
  Manifest manifest;
  manifest.facts["config.json"] = file_hash(run.model_path + "/config.json");
  manifest.facts["tensor headers"] = hex64(checkpoint.header_hash());
  manifest.facts["tokenizer"] = inputs.tokenizer ? file_hash(inputs.tokenizer->file()) : "none";
  for (const auto& [key, value] : result_options(run)) manifest.facts[key] = value;
  manifest.prompts = inputs.file.hashes;
  return manifest;
}

// Tokenizes what an earlier attempt has not finished.
void make_requests(const Command& command, const ModelConfig& model,
                   const std::map<int64_t, FinishedPrompt>& finished, Inputs& inputs) {
  for (const auto& [index, prompt] : finished)
    ++(prompt.rejected ? inputs.earlier_rejected : inputs.earlier_done);
  for (const PromptRecord& prompt : inputs.file.prompts) {
    if (finished.count(prompt.prompt_index)) continue;
    auto [request, error] = make_request(prompt, command.config, model, inputs.tokenizer.get());
    if (!error.empty()) {
      inputs.rejected.push_back(rejection(prompt, error));
      continue;
    }
    if (command.local_debug) request.sampling.temperature = 0;
    inputs.requests.push_back(std::move(request));
  }
}

// One line of reference.jsonl.
std::string reference_line(const Sequence& sequence) {
  const auto n_prompt = sequence.request.prompt_tokens.size();
  nlohmann::json top = nlohmann::json::array();
  for (size_t i = 0; i + kTopLogits <= sequence.top.size(); i += kTopLogits) {
    nlohmann::json ids = nlohmann::json::array(), logits = nlohmann::json::array();
    for (int k = 0; k < kTopLogits; ++k) {
      ids.push_back(sequence.top[i + k].token);
      logits.push_back(sequence.top[i + k].logit);
    }
    top.push_back({{"ids", ids}, {"logits", logits}});
  }
  const nlohmann::json line = {
      {"id", sequence.request.id},
      {"prompt_token_ids", sequence.request.prompt_tokens},
      {"token_ids", std::vector<int32_t>(sequence.tokens.begin() + n_prompt, sequence.tokens.end())},
      {"top", top}};
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Rank 0's side of the run, from checked inputs on.
class Server {
 public:
  Server(App& app, const Command& command, const ModelConfig& model, Inputs inputs)
      : app_(app), command_(command), run_(command.config), model_(model), inputs_(std::move(inputs)) {
    if (run_.output_dir.empty()) return;
    app_.log.open(rank_file(run_, "rank_", 0, ".log"));
    writer_ = std::make_unique<ResultWriter>(run_.output_dir, 0);
    if (command.local_debug) reference_.open(run_.output_dir + "/reference.jsonl", std::ios::app);
    for (const CompletionRecord& record : inputs_.rejected) reject(record);
  }

  ExitCode serve() {
    if (begin(app_, !inputs_.requests.empty())) serve_requests();
    if (writer_) finish_files();
    if (figures_.stopped && unfinished_ > 0) return ExitCode::stopped;
    return figures_.requests_rejected > 0 ? ExitCode::rejected : ExitCode::ok;
  }

 private:
  void reject(const CompletionRecord& record) {
    app_.log.info("rejected: ", record.error);
    if (command_.prompt) usage_error(record.error);
    if (writer_) writer_->write(record);
    ++figures_.requests_rejected;
  }

  void finished(const CompletionRecord& record, const Sequence& sequence) {
    if (writer_) writer_->write(record);
    if (!reference_.is_open()) return;
    reference_ << reference_line(sequence) << '\n' << std::flush;
    if (!reference_) runtime_failure(cat("cannot write ", run_.output_dir, "/reference.jsonl"));
  }

  void serve_requests() {
    const double load_begin_s = now_s();
    Engine engine(app_, run_, model_, run_.model_path, command_.local_debug);
    figures_.load_s = now_s() - load_begin_s;
    figures_.ranks = engine.ranks();
    figures_.loads = engine.loads();
    plan_ = engine.plan();
    app_.log.info(plan_text(model_, plan_));
    const auto show = [](const std::string& text) {
      std::fputs(text.c_str(), stdout);
      std::fflush(stdout);
    };
    CompletionSink sink(
        inputs_.tokenizer.get(), model_.eos_ids,
        [&](const CompletionRecord& record, const Sequence& sequence) { finished(record, sequence); },
        command_.prompt ? show : std::function<void(const std::string&)>{});
    Coordinator coordinator = engine.coordinate(sink);
    const auto total = static_cast<int64_t>(inputs_.requests.size());
    const double begin_s = now_s();
    submit(coordinator.scheduler());
    std::unique_ptr<MetricsWriter> metrics;
    if (writer_)
      metrics = std::make_unique<MetricsWriter>(rank_file(run_, "metrics_rank_", 0, ".jsonl"),
                                                engine.recorder(), engine.device(), kMetricsEveryS);
    const auto queue_figures = [&] {
      const SchedulerCounters c = coordinator.scheduler().counters();
      return std::vector<Figure>{{"waiting", double(c.waiting)},
                                 {"running", double(c.running)},
                                 {"free_blocks", double(c.free_blocks)},
                                 {"preemptions", double(c.preemptions)}};
    };
    {
      Progress progress(command_.prompt ? 0 : total);
      figures_.stopped = coordinator.serve(run_.grace_s, [&] {
        if (!command_.prompt) progress.update(sink.counts().done, sink.tokens());
        if (metrics) metrics->tick(queue_figures());
      });
    }
    if (command_.prompt) std::puts("");
    figures_.serve_s = now_s() - begin_s;
    figures_.counts = sink.counts();
    figures_.scheduler = coordinator.scheduler().counters();
    unfinished_ = total - rejected_late_ - figures_.counts.done;
    figures_.reports = engine.reports(true, run_.trace);
    if (metrics) metrics->finish(queue_figures());
    const double limit =
        app_.job.size() * read_limit_gbps(engine.device(), kReadLimitBytes, plan_.threads[0]);
    engine.close();
    say_goodbye(limit);
  }

  void submit(Scheduler& scheduler) {
    for (Request& request : inputs_.requests) {
      PromptRecord prompt;  // what a rejection shows
      prompt.id = request.id;
      prompt.prompt_index = request.prompt_index;
      prompt.variant = request.variant;
      prompt.prompt = request.prompt;
      const auto found = std::find_if(inputs_.file.prompts.begin(), inputs_.file.prompts.end(),
                                      [&](const auto& p) { return p.prompt_index == prompt.prompt_index; });
      if (auto why = scheduler.submit(std::move(request), now_s())) {
        reject(rejection(prompt, cat("line ", found->line, ": ", *why)));
        ++rejected_late_;
      }
    }
  }

  void say_goodbye(double limit_gbps) {
    const CompletionCounts& counts = figures_.counts;
    if (counts.done == 0 || figures_.scheduler.steps == 0) return;
    const double sequences =
        static_cast<double>(counts.tokens_generated) / static_cast<double>(figures_.scheduler.steps);
    const double context = static_cast<double>(counts.prompt_tokens + counts.tokens_generated / 2) /
                           static_cast<double>(counts.done);
    const std::string line =
        closing_line(figures_, decode_bytes(model_, plan_.dtype, sequences, context), limit_gbps);
    app_.log.info(line);
    std::fprintf(stderr, "pipeinfer: %s\n", line.c_str());
  }

  void finish_files() {
    writer_.reset();
    const bool all_done = unfinished_ == 0;
    if (all_done) merge_completions(run_.output_dir);
    if (run_.trace && !figures_.reports.empty()) {
      std::vector<RankTrace> ranks;
      for (StageReport& report : figures_.reports)
        ranks.push_back({report.rank,
                         cat("rank ", report.rank, ": ", figures_.ranks[report.rank].device.name),
                         std::move(report.trace)});
      write_trace(run_.output_dir + "/trace.json", ranks);
    }
    figures_.requests_rejected += inputs_.earlier_rejected;
    figures_.earlier_done = inputs_.earlier_done;
    figures_.wall_s = now_s() - app_.started_s;
    write_summary(run_.output_dir, run_, figures_.reports.empty() ? nullptr : &plan_, figures_);
    if (all_done && !run_.write_per_rank)
      for (int r = 0; r < app_.job.size(); ++r)
        std::filesystem::remove(rank_file(run_, "completions_rank_", r, ".jsonl"));
  }

  App& app_;
  const Command& command_;
  const RunConfig& run_;
  const ModelConfig& model_;
  Inputs inputs_;
  RunPlan plan_;
  RunFigures figures_;
  std::unique_ptr<ResultWriter> writer_;
  std::ofstream reference_;
  int64_t unfinished_ = 0, rejected_late_ = 0;
};

ExitCode run_root(App& app, const Command& command) {
  const RunConfig& run = command.config;
  if (command.local_debug && app.job.size() > 1)
    usage_error(cat("--local-debug is for one process, this job has ", app.job.size(), " ranks"));
  (void)World(0, app.job.size(), static_cast<int>(run.pipeline_parallel_size),
              static_cast<int>(run.tensor_parallel_size),
              static_cast<int>(run.data_parallel_size));  // throws
  const ModelConfig model = load_model_config(run.model_path);
  check_partition(model, run, app.job.size());
  const double begin_s = now_s();
  Inputs inputs = read_inputs(app, command, model);
  const Checkpoint checkpoint(run.model_path);
  std::map<int64_t, FinishedPrompt> finished;
  if (!run.output_dir.empty()) {
    const OutputMode mode = run.resume      ? OutputMode::resume
                            : run.overwrite ? OutputMode::overwrite
                                            : OutputMode::fresh;
    const Manifest manifest = make_manifest(run, inputs, checkpoint);
    check_output_dir(run.output_dir, mode);
    if (run.resume && check_resumable(run.output_dir, manifest)) finished = read_finished(run.output_dir);
    if (!command.dry_run) {
      prepare_output_dir(run.output_dir, mode);
      write_manifest(run.output_dir, manifest);
    }
  }
  make_requests(command, model, finished, inputs);
  app.log.info("prompts read and tokenized in ", now_s() - begin_s, " s");
  if (command.dry_run) {
    begin(app, false);
    std::fputs(plan_text(model, describe_plan(app, command, model)).c_str(), stdout);
    for (const CompletionRecord& record : inputs.rejected)
      std::printf("rejected: %s\n", record.error.c_str());
    std::printf("%zu prompts to serve, %zu rejected\n", inputs.requests.size(), inputs.rejected.size());
    return inputs.rejected.empty() ? ExitCode::ok : ExitCode::rejected;
  }
  return Server(app, command, model, std::move(inputs)).serve();
}

}  // namespace

ExitCode run_command(App& app, const Command& command) {
  if (app.root()) return run_root(app, command);
  const RunConfig& run = command.config;
  const ModelConfig model = load_model_config(run.model_path);
  if (!run.output_dir.empty()) {
    app.log.open(rank_file(run, "rank_", app.job.rank(), ".log"));
    if (run.write_per_rank) ResultWriter(run.output_dir, app.job.rank());  // the file is there for every rank
  }
  Engine engine(app, run, model, run.model_path, false);
  std::unique_ptr<MetricsWriter> metrics;
  if (!run.output_dir.empty())
    metrics = std::make_unique<MetricsWriter>(rank_file(run, "metrics_rank_", app.job.rank(), ".jsonl"),
                                              engine.recorder(), engine.device(), kMetricsEveryS);
  engine.serve([&] {
    if (metrics) metrics->tick({});
  });
  if (metrics) metrics->finish({});
  engine.close();
  return ExitCode::ok;
}

}  // namespace pipeinfer

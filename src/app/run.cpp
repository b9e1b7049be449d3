#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "pipeinfer/app/commands.h"
#include "pipeinfer/app/progress.h"
#include "pipeinfer/app/requests.h"
#include "pipeinfer/app/summary.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/io/output_dir.h"
#include "pipeinfer/kernels/limits.h"
#include "pipeinfer/trace/metrics_writer.h"
#include "pipeinfer/trace/trace_writer.h"

namespace pipeinfer {

namespace {

constexpr double kMetricsEveryS = 10;
constexpr size_t kReadLimitBytes = size_t{256} << 20;  // enough to leave the caches of a CPU, quick to read

std::string rank_file(const RunConfig& run, const char* stem, int rank, const char* ending) {
  return cat(run.output_dir, "/", stem, rank, ending);
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

// The record of a request that can never fit; nothing where the scheduler takes it.
std::optional<CompletionRecord> submit_one(Scheduler& scheduler, const Inputs& inputs, Request request) {
  const PromptRecord* prompt = find_prompt(inputs, request.prompt_index);
  if (const auto why = scheduler.submit(std::move(request), now_s()))
    return rejection(*prompt, located(*prompt, *why));
  return std::nullopt;
}

// Rank 0's side of the run, from checked inputs on.
class Server {
 public:
  Server(App& app, const Command& command, const ModelConfig& model, Inputs inputs, Manifest manifest,
         double preprocess_s)
      : app_(app),
        command_(command),
        run_(command.config),
        model_(model),
        inputs_(std::move(inputs)),
        manifest_(std::move(manifest)) {
    figures_.preprocess_s = preprocess_s;
    figures_.earlier = inputs_.earlier;
    if (!run_.output_dir.empty()) app_.log.open(rank_file(run_, "rank_", 0, ".log"));
  }

  ExitCode serve() {
    if (begin(app_, !inputs_.requests.empty()))
      serve_requests();
    else
      open_results();
    if (writer_) finish_files();
    tell_outcome();
    if (figures_.stopped && unfinished_ > 0) return ExitCode::stopped;
    return figures_.earlier.rejected + figures_.requests_rejected > 0 ? ExitCode::rejected : ExitCode::ok;
  }

 private:
  // Once every rank has loaded: a run that cannot start leaves nothing that the next one would stumble over.
  void open_results() {
    if (run_.output_dir.empty()) return;
    if (run_.overwrite) remove_old_results(run_.output_dir);
    write_manifest(run_.output_dir, manifest_);
    for (int r = 1; r < app_.job.size() && run_.write_per_rank; ++r)
      ResultWriter(run_.output_dir, r);  // the file is there for every rank
    writer_ = std::make_unique<ResultWriter>(run_.output_dir, 0);
    if (command_.local_debug) reference_.open(run_.output_dir + "/reference.jsonl", std::ios::app);
    for (const CompletionRecord& record : inputs_.rejected) reject(record);
  }

  void reject(const CompletionRecord& record) {
    app_.log.info("rejected: ", record.error);
    if (command_.prompt) usage_error(cat("--prompt: ", record.error));
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
    open_results();
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
    if (command_.prompt) show("\n");
    figures_.serve_s = now_s() - begin_s;
    figures_.counts = sink.counts();
    figures_.scheduler = coordinator.scheduler().counters();
    unfinished_ = total - rejected_late_ - figures_.counts.done;
    figures_.reports = engine.reports(true, run_.trace);
    if (metrics) metrics->finish(queue_figures());
    const double limit =
        app_.job.size() * read_limit_gbps(engine.device(), kReadLimitBytes, plan_.threads[0]);
    engine.close();
    tell_speed(limit);
  }

  void submit(Scheduler& scheduler) {
    for (Request& request : inputs_.requests) {
      if (const auto rejected = submit_one(scheduler, inputs_, std::move(request))) {
        reject(*rejected);
        ++rejected_late_;
      }
    }
  }

  void say(const std::string& line) {
    app_.log.info(line);
    std::fprintf(stderr, "pipeinfer: %s\n", line.c_str());
  }

  // What a person must know beside the speed.
  void tell_outcome() {
    const int64_t rejected = figures_.earlier.rejected + figures_.requests_rejected;
    if (rejected > 0)
      say(cat(counted(rejected, "prompt"), rejected == 1 ? " was" : " were", " rejected: see \"error\" in ",
              run_.output_dir, "/completions", unfinished_ > 0 ? "_rank_0" : "", ".jsonl"));
    if (figures_.stopped && unfinished_ > 0)
      say(cat("stopped with ", counted(unfinished_, "prompt"), " left",
              run_.output_dir.empty() ? "" : ": --resume continues"));
    else if (figures_.reports.empty() && figures_.earlier.done > 0)
      say(cat("nothing to serve: ", counted(figures_.earlier.done, "prompt"), " done before"));
  }

  void tell_speed(double limit_gbps) {
    const CompletionCounts& counts = figures_.counts;
    if (counts.done == 0 || figures_.scheduler.steps == 0) return;
    const double sequences =
        static_cast<double>(counts.tokens_generated) / static_cast<double>(figures_.scheduler.steps);
    const double context = static_cast<double>(counts.prompt_tokens + counts.tokens_generated / 2) /
                           static_cast<double>(counts.done);
    say(closing_line(figures_, decode_bytes(model_, plan_.dtype, sequences, context), limit_gbps));
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
    figures_.wall_s = now_s() - app_.started_s;
    write_summary(run_.output_dir, run_, figures_.reports.empty() ? nullptr : &plan_, figures_);
    if (all_done && !run_.write_per_rank) remove_rank_files(run_.output_dir);
  }

  App& app_;
  const Command& command_;
  const RunConfig& run_;
  const ModelConfig& model_;
  Inputs inputs_;
  const Manifest manifest_;
  RunPlan plan_;
  RunFigures figures_;
  std::unique_ptr<ResultWriter> writer_;
  std::ofstream reference_;
  int64_t unfinished_ = 0, rejected_late_ = 0;
};

// What a run would do, up to the first step.
ExitCode dry_run(App& app, const Command& command, const ModelConfig& model, Inputs inputs) {
  begin(app, false);
  const RunPlan plan = describe_plan(app, command, model);
  CompletionSink sink(inputs.tokenizer.get(), model.eos_ids, {});
  Scheduler scheduler(plan.layout.scheduler, sink);
  for (Request& request : inputs.requests)
    if (const auto rejected = submit_one(scheduler, inputs, std::move(request)))
      inputs.rejected.push_back(*rejected);
  std::fputs(plan_text(model, plan).c_str(), stdout);
  for (const CompletionRecord& record : inputs.rejected) std::printf("rejected: %s\n", record.error.c_str());
  std::printf("%s to serve, %zu rejected\n", counted(scheduler.counters().waiting, "prompt").c_str(),
              inputs.rejected.size());
  return inputs.earlier.rejected + inputs.rejected.size() > 0 ? ExitCode::rejected : ExitCode::ok;
}

ExitCode run_root(App& app, const Command& command) {
  const RunConfig& run = command.config;
  if (command.local_debug && app.job.size() > 1)
    usage_error(cat("--local-debug is for one process, this job has ", app.job.size(), " ranks"));
  const ModelConfig model = load_model_config(run.model_path);
  check_stages(model, run, app.job.size());
  const double begin_s = now_s();
  Inputs inputs = read_inputs(app.log, command, model);
  const Checkpoint checkpoint(run.model_path);
  check_weights(model, checkpoint);
  std::map<int64_t, FinishedPrompt> finished;
  Manifest manifest;
  if (!run.output_dir.empty()) {
    const OutputMode mode = run.resume      ? OutputMode::resume
                            : run.overwrite ? OutputMode::overwrite
                                            : OutputMode::fresh;
    manifest = make_manifest(run, inputs, checkpoint);
    check_output_dir(run.output_dir, mode);
    if (run.resume && check_resumable(run.output_dir, manifest)) finished = read_finished(run.output_dir);
    take_finished(run, finished, inputs);
    if (!command.dry_run) prepare_output_dir(run.output_dir, mode);
  }
  make_requests(command, model, finished, inputs);
  const double preprocess_s = now_s() - begin_s;
  app.log.info("prompts read and tokenized in ", preprocess_s, " s");
  if (command.dry_run) return dry_run(app, command, model, std::move(inputs));
  return Server(app, command, model, std::move(inputs), std::move(manifest), preprocess_s).serve();
}

}  // namespace

ExitCode run_command(App& app, const Command& command) {
  if (app.root()) return run_root(app, command);
  const RunConfig& run = command.config;
  const ModelConfig model = load_model_config(run.model_path);
  if (!run.output_dir.empty()) {
    app.log.open(rank_file(run, "rank_", app.job.rank(), ".log"));
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

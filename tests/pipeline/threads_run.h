// A whole job with ranks as threads: LocalWorld, watchdogs, workers and a coordinator over fake stages.
#pragma once

#include <atomic>
#include <map>
#include <thread>

#include "fake_stage.h"
#include "pipeinfer/comm/local.h"
#include "pipeinfer/pipeline/coordinator.h"

namespace pipeinfer::testing {

struct JobSetup {
  Layout layout;
  std::vector<Request> requests;
  LocalFaults faults;
  double max_delay_s = 0;  ///< of a fake step
  double timeout_s = 30;
  double grace_s = 0;
  std::function<void(int rank, FakeStage&, LocalWorld&)> prepare;
  std::function<void(const StepPlan&, std::atomic<bool>* stops)>
      on_plan;  ///< rank 0, before it executes a step
};

struct RankOutcome {
  Watchdog::Farewell farewell{ExitCode::ok, true};
  std::string error;
};

struct JobOutcome {
  std::map<std::string, std::vector<int32_t>> tokens;  ///< new tokens by id
  std::map<std::string, FinishReason> finish;
  std::vector<RankOutcome> ranks;
  std::vector<StageReport> reports;
  SchedulerCounters counters;
  bool stopped = false;
};

class Collector : public SchedulerEvents {
 public:
  explicit Collector(JobOutcome& outcome) : outcome_(outcome) {}
  bool on_token(const Sequence&) override { return false; }
  void on_finish(const Sequence& sequence) override {
    const auto begin = sequence.tokens.begin() + sequence.request.prompt_tokens.size();
    PI_CHECK(outcome_.tokens.emplace(sequence.request.id, std::vector<int32_t>(begin, sequence.tokens.end()))
                 .second,
             sequence.request.id, " finished twice");
    outcome_.finish[sequence.request.id] = sequence.finish;
  }

 private:
  JobOutcome& outcome_;
};

inline ExitCode run_rank(const JobSetup& setup, LocalWorld& world, RankContext& rank,
                         std::atomic<bool>* stops, JobOutcome& outcome) {
  FakeStage stage(setup.layout, rank.job.rank(), setup.max_delay_s);
  if (setup.prepare) setup.prepare(rank.job.rank(), stage, world);
  StageWorker worker(rank, setup.layout, stage);
  worker.connect();
  if (rank.job.rank() != 0) {
    serve_stage(rank, worker, [] {});
    return ExitCode::ok;
  }
  if (setup.on_plan) stage.before_run = [&](const StepPlan& plan) { setup.on_plan(plan, stops); };
  Collector collector(outcome);
  Coordinator coordinator(rank, setup.layout, worker, collector);
  for (const Request& request : setup.requests)
    if (auto why = coordinator.scheduler().submit(request, 0)) usage_error(*why);
  outcome.stopped = coordinator.serve(setup.grace_s, [] {});
  outcome.counters = coordinator.scheduler().counters();
  outcome.reports = gather_reports(rank, worker, true, true);
  return outcome.stopped ? ExitCode::stopped : ExitCode::ok;
}

inline JobOutcome run_job(const JobSetup& setup) {
  const int n = setup.layout.n_stages();
  LocalWorld world(n, setup.faults);
  JobOutcome outcome;
  outcome.ranks.resize(n);
  std::vector<std::atomic<bool>> stops(n);
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r)
    threads.emplace_back([&, r] {
      auto job = world.job(r);
      auto transport = world.transport(r);
      Log log(r);
      Watchdog watchdog(*job, log, stops[r], setup.timeout_s);
      watchdog.on_fault([&] { transport->abort(); });
      StepRecorder recorder;
      RankContext rank{*job, log, watchdog, *transport, recorder, Device{}};
      ExitCode code = ExitCode::ok;
      try {
        code = run_rank(setup, world, rank, stops.data(), outcome);
      } catch (const Error& e) {
        code = watchdog.report(e);
        outcome.ranks[r].error = watchdog.reason();
      }
      outcome.ranks[r].farewell = watchdog.leave(code);
      watchdog.on_fault({});
    });
  for (auto& thread : threads) thread.join();
  return outcome;
}

/// A pool of 64 blocks of 8 tokens, contexts of 64.
inline SchedulerConfig small_scheduler(int lanes, int batch_size) {
  return {.lanes = lanes,
          .batch_size = batch_size,
          .prefill_chunk = 16,
          .block_size = 8,
          .blocks = 64,
          .context = 64,
          .steps_ahead = 1,
          .want_top = false,
          .eos_ids = {}};
}

/// An even partition of one layer a stage: the fake has no layers.
inline Layout make_layout(int n_stages, SchedulerConfig scheduler) {
  Layout layout;
  for (int s = 0; s <= n_stages; ++s) layout.layers.push_back(s);
  layout.scheduler = scheduler;
  layout.vocab_size = 997;
  return layout;
}

}  // namespace pipeinfer::testing

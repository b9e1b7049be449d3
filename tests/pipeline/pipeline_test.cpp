// Scheduling, lanes, preemption and transport together, with ranks as threads and fake stages: whatever the
// configuration, every request gets the tokens that its own history alone determines.
#include <gtest/gtest.h>

#include "threads_run.h"

namespace pipeinfer::testing {
namespace {

std::vector<Request> random_requests(std::mt19937& rng, int n, int context) {
  std::vector<Request> requests;
  for (int i = 0; i < n; ++i) {
    Request request;
    request.prompt_index = i;
    request.id = cat("r", i);
    const int prompt = 1 + rng() % (context - 1);
    for (int k = 0; k < prompt; ++k) request.prompt_tokens.push_back(rng() % 997);
    request.max_new_tokens = 1 + rng() % std::min(24, context - prompt);
    requests.push_back(request);
  }
  return requests;
}

void expect_tokens(const JobSetup& setup, const JobOutcome& outcome) {
  for (const RankOutcome& rank : outcome.ranks) {
    EXPECT_EQ(rank.error, "");
    EXPECT_EQ(rank.farewell.code, ExitCode::ok);
    EXPECT_TRUE(rank.farewell.orderly);
  }
  ASSERT_EQ(outcome.tokens.size(), setup.requests.size());
  for (const Request& request : setup.requests) {
    const std::vector<int32_t> eos =
        request.ignore_eos ? std::vector<int32_t>{} : setup.layout.scheduler.eos_ids;
    EXPECT_EQ(outcome.tokens.at(request.id), expected_tokens(request.prompt_tokens, request.max_new_tokens,
                                                             setup.layout.n_stages(), 997, eos))
        << request.id;
  }
  EXPECT_EQ(outcome.counters.free_blocks, setup.layout.scheduler.blocks);
  EXPECT_EQ(outcome.counters.running, 0);
}

TEST(Pipeline, RandomConfigurationsGiveTheTokensOfEachHistory) {
  int64_t preemptions = 0;
  for (unsigned seed = 0; seed < 24; ++seed) {
    SCOPED_TRACE(cat("seed ", seed));
    std::mt19937 rng(seed);
    SchedulerConfig config;
    config.context = 16 + rng() % 80;
    config.lanes = 1 + rng() % 4;
    config.batch_size = 1 + rng() % 12;
    config.prefill_chunk = 1 + rng() % 40;
    config.block_size = 2;
    const int one_sequence = (config.context + 1) / 2;
    config.blocks = one_sequence + rng() % one_sequence;  // scarce: preemption is forced
    config.steps_ahead = 1 + rng() % 3;
    for (int i = 0; i < 60; ++i) config.eos_ids.push_back(rng() % 997);  // one token in 17 ends a sequence
    JobSetup setup;
    setup.layout = make_layout(1 + seed % 4, config);
    setup.requests = random_requests(rng, 20, config.context);
    for (auto& request : setup.requests) request.ignore_eos = rng() % 2;
    setup.faults = {.max_delay_s = seed % 2 ? 1e-3 : 0.0, .seed = seed};
    setup.max_delay_s = seed % 3 ? 0 : 5e-4;
    const JobOutcome outcome = run_job(setup);
    expect_tokens(setup, outcome);
    preemptions += outcome.counters.preemptions;
  }
  EXPECT_GT(preemptions, 10);
}

TEST(Pipeline, AllLanesAreInFlightAtOnce) {
  SchedulerConfig config = small_scheduler(3, 6);
  config.prefill_chunk = 64;
  JobSetup setup;
  setup.layout = make_layout(3, config);
  std::mt19937 rng(5);
  setup.requests = random_requests(rng, 6, 16);
  for (auto& request : setup.requests) request.max_new_tokens = 40;
  std::atomic<int> running{0}, most{0};
  setup.prepare = [&](int, FakeStage& stage, LocalWorld&) {
    stage.before_run = [&](const StepPlan&) {
      most = std::max(most.load(), ++running);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      --running;
    };
  };
  const JobOutcome outcome = run_job(setup);
  expect_tokens(setup, outcome);
  EXPECT_EQ(most, 3);  // every stage at work at the same moment
}

TEST(Pipeline, ReportsSplitTheWallClock) {
  SchedulerConfig config = small_scheduler(2, 4);
  JobSetup setup;
  setup.layout = make_layout(2, config);
  std::mt19937 rng(6);
  setup.requests = random_requests(rng, 8, 32);
  setup.max_delay_s = 1e-3;
  const JobOutcome outcome = run_job(setup);
  expect_tokens(setup, outcome);
  ASSERT_EQ(outcome.reports.size(), 2u);
  for (const StageReport& report : outcome.reports) {
    EXPECT_EQ(report.steps, outcome.counters.steps);
    EXPECT_EQ(static_cast<int64_t>(report.trace.size()), report.steps);
    EXPECT_GT(report.time.compute_s, 0);
    EXPECT_GE(report.time.idle_s, 0);
    EXPECT_GE(report.time.comm_exposed_s, 0);
    EXPECT_NEAR(report.time.compute_s + report.time.comm_exposed_s + report.time.idle_s, report.time.wall_s,
                0.01 * report.time.wall_s);
  }
  // Stage 1 computes a step after stage 0 has: on one clock.
  for (size_t i = 0; i < outcome.reports[0].trace.size(); ++i)
    EXPECT_GE(outcome.reports[1].trace[i].compute_begin_s, outcome.reports[0].trace[i].compute_end_s - 1e-4);
}

TEST(Pipeline, TheStopOfAnyRankDrains) {
  SchedulerConfig config = small_scheduler(2, 2);
  config.steps_ahead = 2;
  JobSetup setup;
  setup.layout = make_layout(2, config);
  std::mt19937 rng(7);
  setup.requests = random_requests(rng, 40, 32);
  setup.max_delay_s = 2e-3;
  setup.timeout_s = 5;
  setup.grace_s = 20;
  setup.on_plan = [&](const StepPlan& plan, std::atomic<bool>* stops) {
    if (plan.step == 5) stops[1] = true;  // as if rank 1 had got SIGTERM
  };
  const JobOutcome outcome = run_job(setup);
  EXPECT_TRUE(outcome.stopped);
  EXPECT_GT(outcome.tokens.size(), 0u);
  EXPECT_LT(outcome.tokens.size(), 40u);
  for (const auto& [id, tokens] : outcome.tokens) {
    const Request& request = setup.requests[std::stoi(id.substr(1))];
    EXPECT_EQ(tokens, expected_tokens(request.prompt_tokens, request.max_new_tokens, 2, 997, {}));
  }
  for (const RankOutcome& rank : outcome.ranks) EXPECT_EQ(rank.farewell.code, ExitCode::stopped);
}

}  // namespace
}  // namespace pipeinfer::testing

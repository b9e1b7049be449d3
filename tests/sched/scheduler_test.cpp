#include "pipeinfer/sched/scheduler.h"

#include <gtest/gtest.h>

#include <numeric>

#include "pipeinfer/base/error.h"
#include "simulation.h"

namespace pipeinfer::testing {
namespace {

SchedulerConfig small_config() {
  SchedulerConfig config;
  config.lanes = 1;
  config.batch_size = 4;
  config.prefill_chunk = 8;
  config.block_size = 4;
  config.blocks = 32;
  config.context = 64;
  config.steps_ahead = 1;
  return config;
}

std::vector<int32_t> prompt(int32_t n, int32_t first = 10) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

void expect_row(const StepRow& row, int32_t slot, int32_t position, int32_t n_tokens, int32_t n_samples,
                bool from_slot) {
  EXPECT_EQ(row.slot, slot);
  EXPECT_EQ(row.position, position);
  EXPECT_EQ(row.n_tokens, n_tokens);
  EXPECT_EQ(row.n_samples, n_samples);
  EXPECT_EQ(row.first_token == kFromSlot, from_slot);
}

TEST(Scheduler, PrefillsInChunksThenDecodes) {
  Simulation simulation(small_config());
  EXPECT_TRUE(simulation.scheduler.idle());
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(11), 3), 5));
  EXPECT_FALSE(simulation.scheduler.idle());
  EXPECT_EQ(simulation.scheduler.counters().waiting, 1);

  const auto first = simulation.plan(0);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->step, 0u);
  ASSERT_EQ(first->opened.size(), 1u);
  EXPECT_EQ(first->opened[0].prompt_tokens, 11);
  ASSERT_EQ(first->granted.size(), 1u);
  EXPECT_EQ(first->granted[0].blocks, (std::vector<int32_t>{0, 1, 2}));  // 11 tokens and one more
  ASSERT_EQ(first->rows.size(), 1u);
  expect_row(first->rows[0], 0, 0, 8, 0, false);
  EXPECT_FALSE(simulation.plan(0)) << "one step in flight is all that steps_ahead allows";
  simulation.commit(0);

  const auto second = simulation.plan(0);
  ASSERT_TRUE(second);
  EXPECT_TRUE(second->opened.empty() && second->granted.empty());
  expect_row(second->rows.at(0), 0, 8, 3, 1, false);
  EXPECT_EQ(second->tokens, prompt(3, 18));
  simulation.commit(0);

  const auto third = simulation.plan(0);
  ASSERT_TRUE(third);
  expect_row(third->rows.at(0), 0, 11, 1, 1, true);
  simulation.commit(0);
  const auto fourth = simulation.plan(0);
  ASSERT_TRUE(fourth);
  ASSERT_EQ(fourth->granted.size(), 1u);  // position 12 starts a block
  EXPECT_EQ(fourth->granted[0].blocks, std::vector<int32_t>{3});
  simulation.commit(0);

  EXPECT_FALSE(simulation.plan(0));
  EXPECT_TRUE(simulation.scheduler.idle());
  const Sequence& sequence = simulation.events.ended.at("a");
  EXPECT_EQ(sequence.tokens, expected(make_request("a", prompt(11), 3), simulation.config).tokens);
  EXPECT_EQ(sequence.finish, FinishReason::length);
  EXPECT_EQ(sequence.submitted_s, 5);
  EXPECT_EQ(sequence.first_token_s, 2);
  EXPECT_EQ(sequence.finished_s, 4);
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, 32);
}

TEST(Scheduler, PlansAheadButNeverBeyondTheLimit) {
  SchedulerConfig config = small_config();
  config.steps_ahead = 5;
  Simulation simulation(config);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(2), 3), 0));
  EXPECT_TRUE(simulation.plan(0));   // prefill
  EXPECT_TRUE(simulation.plan(0));   // the second token
  EXPECT_TRUE(simulation.plan(0));   // the third
  EXPECT_FALSE(simulation.plan(0));  // there is no fourth
  EXPECT_EQ(simulation.scheduler.in_flight(0), 3);
  simulation.finish();
  EXPECT_EQ(simulation.row_tokens, 4);
  EXPECT_EQ(simulation.events.ended.at("a").new_tokens(), 3);
}

TEST(Scheduler, DecodeRowsRideWithAChunkSharedByOldestFirst) {
  Simulation simulation(small_config());
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(2), 9), 0));
  simulation.plan(0);
  simulation.commit(0);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("b", prompt(5), 9), 0));
  ASSERT_FALSE(simulation.scheduler.submit(make_request("c", prompt(6), 9), 0));
  const auto plan = simulation.plan(0);
  ASSERT_TRUE(plan);
  ASSERT_EQ(plan->rows.size(), 3u);
  EXPECT_EQ(plan->n_decode(), 1);
  expect_row(plan->rows[0], 0, 2, 1, 1, true);
  expect_row(plan->rows[1], 1, 0, 5, 1, false);
  expect_row(plan->rows[2], 2, 0, 3, 0, false);  // what is left of 8
  simulation.finish();
}

TEST(Scheduler, PromptsThatWereBegunGoBeforeNewTokens) {
  Simulation simulation(small_config());
  ASSERT_FALSE(simulation.scheduler.submit(make_request("short", prompt(6), 4), 0));
  ASSERT_FALSE(simulation.scheduler.submit(make_request("long", prompt(14), 4), 0));
  const auto first = simulation.plan(0);  // all of the short one and the begin of the other
  ASSERT_EQ(first->rows.size(), 2u);
  simulation.commit(0);
  for (int32_t position : {2, 10}) {
    const auto chunk = simulation.plan(0);
    ASSERT_EQ(chunk->rows.size(), 1u) << "the short one waits with its second token";
    EXPECT_EQ(chunk->rows[0].position, position);
    simulation.commit(0);
  }
  EXPECT_EQ(simulation.plan(0)->rows.size(), 2u);
}

TEST(Scheduler, SequencesSpreadOverLanes) {
  SchedulerConfig config = small_config();
  config.lanes = 3;
  Simulation simulation(config);
  for (const char* id : {"a", "b", "c", "d", "e"}) {
    ASSERT_FALSE(simulation.scheduler.submit(make_request(id, prompt(2), 4), 0));
  }
  std::vector<size_t> rows;
  for (int lane = 0; lane < 3; ++lane) rows.push_back(simulation.plan(lane)->rows.size());
  EXPECT_EQ(rows, (std::vector<size_t>{2, 1, 1}));  // "e" has no slot yet
  EXPECT_EQ(simulation.scheduler.counters().running, 4);
  EXPECT_EQ(simulation.scheduler.counters().waiting, 1);
  simulation.finish();
  EXPECT_EQ(simulation.events.order, (std::vector<std::string>{"a", "d", "b", "c", "e"}));
}

// Lanes whose sequences end together, one lane after the other: what waits is spread over both, not all the first one's.
TEST(Scheduler, WhoOnlyWaitsForItsLastStepCountsForNoLane) {
  SchedulerConfig config = small_config();
  config.lanes = 2;
  Simulation simulation(config);
  for (const char* id : {"a", "b", "c", "d", "e", "f"})
    ASSERT_FALSE(simulation.scheduler.submit(make_request(id, prompt(2), 2), 0));
  const auto rows = [&](int lane) {
    const auto plan = simulation.plan(lane);
    return plan ? plan->rows.size() : 0;
  };
  for (int lane : {0, 1}) EXPECT_EQ(rows(lane), 2u);  // prompts
  simulation.commit_any();
  for (int lane : {0, 1}) EXPECT_EQ(rows(lane), 2u);  // the second tokens
  simulation.commit(0);                               // a and c are done, b and d in flight
  EXPECT_EQ(rows(0), 1u);
  simulation.commit(1);
  EXPECT_EQ(rows(1), 1u);
  simulation.finish();
}

TEST(Scheduler, FewerSequencesThanLanesLeaveLanesEmpty) {
  SchedulerConfig config = small_config();
  config.lanes = 3;
  Simulation simulation(config);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(2), 4), 0));
  EXPECT_TRUE(simulation.plan(0));
  EXPECT_FALSE(simulation.plan(1));
  EXPECT_FALSE(simulation.plan(2));
}

TEST(Scheduler, AdmitsInOrderAsBlocksAllow) {
  SchedulerConfig config = small_config();
  config.blocks = 4;
  Simulation simulation(config);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(4), 2), 0));   // 2 blocks
  ASSERT_FALSE(simulation.scheduler.submit(make_request("b", prompt(11), 2), 0));  // 3 blocks: must wait
  ASSERT_FALSE(
      simulation.scheduler.submit(make_request("c", prompt(2), 2), 0));  // would fit, but is not next
  simulation.plan(0);
  EXPECT_EQ(simulation.scheduler.counters().running, 1);
  simulation.finish();
  EXPECT_EQ(simulation.events.order, (std::vector<std::string>{"a", "b", "c"}));
}

TEST(Scheduler, AdmissionLeavesABlockForEachThatRuns) {
  SchedulerConfig config = small_config();
  config.blocks = 4;
  Simulation simulation(config);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(4), 2), 0));  // 2 blocks; 2 are left
  ASSERT_FALSE(simulation.scheduler.submit(make_request("b", prompt(2), 2), 0));  // 1 block, and 1 for "a"
  ASSERT_FALSE(
      simulation.scheduler.submit(make_request("c", prompt(2), 2), 0));  // 1 is left: for "a" and "b"
  simulation.plan(0);
  EXPECT_EQ(simulation.scheduler.counters().running, 2);
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, 1);
}

TEST(Scheduler, ASlotIsReopenedInAPlanThatClosesIt) {
  SchedulerConfig config = small_config();
  config.batch_size = 1;
  Simulation simulation(config);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(2), 1), 0));
  ASSERT_FALSE(simulation.scheduler.submit(make_request("b", prompt(2), 1), 0));
  simulation.plan(0);
  simulation.commit(0);
  const auto plan = simulation.plan(0);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->closed, std::vector<int32_t>{0});
  ASSERT_EQ(plan->opened.size(), 1u);
  EXPECT_EQ(plan->opened[0].slot, 0);
}

TEST(Scheduler, RefusesWhatCanNeverFit) {
  SchedulerConfig config = small_config();
  config.blocks = 4;
  Simulation simulation(config);
  EXPECT_EQ(simulation.scheduler.submit(make_request("a", prompt(14), 4), 0),
            "14 prompt tokens and 4 new ones need 5 KV blocks, the pool has 4");
  EXPECT_EQ(simulation.scheduler.submit(make_request("b", prompt(60), 5), 0),
            "60 prompt tokens and 5 new ones exceed the context of 64");
  EXPECT_TRUE(simulation.scheduler.idle());
  // The last token is never fed back: 14 + 3 tokens need 16 places.
  EXPECT_FALSE(simulation.scheduler.submit(make_request("c", prompt(14), 3), 0));
  simulation.finish();
  EXPECT_EQ(simulation.events.ended.size(), 1u);
}

TEST(Scheduler, TheContextMayBeFilledExactly) {
  Simulation simulation(small_config());
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(60), 4), 0));
  simulation.finish();
  EXPECT_EQ(simulation.events.ended.at("a").tokens.size(), 64u);
}

// The requests' first new token is the same; what it means differs.
TEST(Scheduler, EosRulesBeforeStopBeforeLength) {
  const int32_t first = expected(make_request("x", prompt(3), 1), small_config()).tokens.back();
  SchedulerConfig config = small_config();
  config.eos_ids = {1000, first};
  config.steps_ahead = 3;
  Simulation simulation(config);
  Request request = make_request("eos", prompt(3), 1);
  request.stop = {std::to_string(first)};
  ASSERT_FALSE(simulation.scheduler.submit(request, 0));
  request.id = "stop";
  request.ignore_eos = true;
  ASSERT_FALSE(simulation.scheduler.submit(request, 0));
  request.id = "length";
  request.stop.clear();
  ASSERT_FALSE(simulation.scheduler.submit(request, 0));
  request.id = "overrun";
  request.ignore_eos = false;
  request.max_new_tokens = 20;
  ASSERT_FALSE(simulation.scheduler.submit(request, 0));
  simulation.finish();
  for (const char* id : {"eos", "stop", "length"}) {
    EXPECT_STREQ(finish_reason_name(simulation.events.ended.at(id).finish), id);
  }
  const Sequence& overrun = simulation.events.ended.at("overrun");
  EXPECT_EQ(overrun.finish, FinishReason::eos);
  EXPECT_EQ(overrun.new_tokens(), 1) << "tokens of steps queued behind the EOS are dropped";
  EXPECT_GT(simulation.row_tokens, 4 * 3) << "there were such steps";
}

TEST(Scheduler, ScoresEveryPositionFromTheOneAskedFor) {
  SchedulerConfig config = small_config();
  config.want_top = true;
  config.steps_ahead = 4;
  Simulation simulation(config);
  Request request = make_request("a", prompt(15), 0);
  request.score_from = 3;
  ASSERT_FALSE(simulation.scheduler.submit(request, 0));
  const auto first = simulation.plan(0);
  ASSERT_TRUE(first);
  expect_row(first->rows.at(0), 0, 0, 3, 0, false);  // a row scores all or nothing
  EXPECT_TRUE(first->want_top);
  expect_row(simulation.plan(0)->rows.at(0), 0, 3, 8, 8, false);
  expect_row(simulation.plan(0)->rows.at(0), 0, 11, 4, 4, false);
  EXPECT_FALSE(simulation.plan(0));
  simulation.finish();
  const Sequence& sequence = simulation.events.ended.at("a");
  EXPECT_EQ(sequence.finish, FinishReason::length);
  EXPECT_EQ(sequence.tokens, request.prompt_tokens);
  const Sequence want = expected(request, config);
  ASSERT_EQ(sequence.top.size(), 12u * kTopLogits);
  for (size_t i = 0; i < want.top.size(); ++i) EXPECT_EQ(sequence.top[i].token, want.top[i].token) << i;
}

std::string refusal(Scheduler& scheduler, const StepResult& result) {
  try {
    scheduler.commit(result, 0);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::failed);
    return error.what();
  }
  return "accepted";
}

TEST(Scheduler, RefusesResultsThatFitNoPlan) {
  SchedulerConfig config = small_config();
  config.lanes = 2;
  Simulation simulation(config);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(3), 4), 0));
  ASSERT_TRUE(simulation.plan(0));
  Scheduler& scheduler = simulation.scheduler;
  EXPECT_EQ(refusal(scheduler, {0, 2, {1}, {}}), "result of step 0 names lane 2 of 2");
  EXPECT_EQ(refusal(scheduler, {0, -1, {1}, {}}), "result of step 0 names lane -1 of 2");
  EXPECT_EQ(refusal(scheduler, {0, 1, {1}, {}}),
            "result of step 0 came for lane 1, which has no step in flight");
  const std::string expected = "result of lane 0 fits no plan: expected step 0 with 1 tokens, found step ";
  EXPECT_EQ(refusal(scheduler, {1, 0, {1}, {}}), expected + "1 with 1 tokens and 0 top logits");
  EXPECT_EQ(refusal(scheduler, {0, 0, {1, 2}, {}}), expected + "0 with 2 tokens and 0 top logits");
  EXPECT_EQ(refusal(scheduler, {0, 0, {1}, {{1, 1}}}), expected + "0 with 1 tokens and 1 top logits");
  EXPECT_EQ(refusal(scheduler, {0, 0, {1}, {}}), "accepted");
  EXPECT_EQ(refusal(scheduler, {0, 0, {1}, {}}),
            "result of step 0 came for lane 0, which has no step in flight");
}

TEST(Scheduler, DrainFinishesWhatWasAdmitted) {
  SchedulerConfig config = small_config();
  config.batch_size = 1;
  Simulation simulation(config);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("a", prompt(3), 6), 0));
  ASSERT_FALSE(simulation.scheduler.submit(make_request("b", prompt(3), 6), 0));
  simulation.plan(0);
  simulation.scheduler.drain();
  EXPECT_FALSE(simulation.scheduler.idle());
  simulation.finish();
  EXPECT_EQ(simulation.events.order, std::vector<std::string>{"a"});
  EXPECT_EQ(simulation.scheduler.counters().waiting, 1);
}

TEST(Scheduler, CancelLeavesOnlyStepsInFlight) {
  SchedulerConfig config = small_config();
  config.lanes = 2;
  config.steps_ahead = 2;
  config.batch_size = 3;
  Simulation simulation(config);
  for (const char* id : {"a", "b", "c", "d"}) {
    ASSERT_FALSE(simulation.scheduler.submit(make_request(id, prompt(3), 6), 0));
  }
  simulation.plan(0);
  simulation.plan(0);
  simulation.scheduler.cancel();
  EXPECT_FALSE(simulation.plan(0));
  EXPECT_FALSE(simulation.plan(1));
  EXPECT_FALSE(simulation.scheduler.idle());
  simulation.commit(0);
  EXPECT_FALSE(simulation.scheduler.idle());
  simulation.commit(0);
  EXPECT_TRUE(simulation.scheduler.idle());
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, 32);
  EXPECT_TRUE(simulation.events.ended.empty());
}

}  // namespace
}  // namespace pipeinfer::testing

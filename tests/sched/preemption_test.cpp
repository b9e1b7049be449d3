#include <gtest/gtest.h>

#include "pipeinfer/base/error.h"
#include "simulation.h"

namespace pipeinfer::testing {
namespace {

// Two sequences that fit alone but not together: 4 blocks of 4 tokens.
SchedulerConfig tight_config(int lanes, int steps_ahead) {
  SchedulerConfig config;
  config.lanes = lanes;
  config.batch_size = 2;
  config.prefill_chunk = 8;
  config.block_size = 4;
  config.blocks = 4;
  config.context = 16;
  config.steps_ahead = steps_ahead;
  return config;
}

const Request kOld = make_request("old", {1, 2, 3}, 12);
const Request kYoung = make_request("young", {4, 5, 6}, 12);

void submit_both(Simulation& simulation) {
  ASSERT_FALSE(simulation.scheduler.submit(kOld, 0));
  ASSERT_FALSE(simulation.scheduler.submit(kYoung, 0));
}

void expect_both_ended(const Simulation& simulation) {
  for (const Request& request : {kOld, kYoung}) {
    EXPECT_EQ(simulation.events.ended.at(request.id).tokens, expected(request, simulation.config).tokens)
        << request.id;
  }
  EXPECT_EQ(simulation.events.order, (std::vector<std::string>{"old", "young"}));
  EXPECT_EQ(simulation.events.ended.at("old").preemptions, 0) << "the oldest is never a victim";
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, simulation.config.blocks);
}

TEST(Preemption, TheYoungestIsRecomputedFromItsTokens) {
  Simulation simulation(tight_config(1, 1));
  submit_both(simulation);
  std::vector<StepPlan> plans;
  while (simulation.scheduler.counters().preemptions == 0) {
    plans.push_back(simulation.plan(0).value());
    simulation.commit(0);
  }
  // Both hold 2 blocks, for positions 0 to 7; the old one needs a third, and gets the victim's at once.
  EXPECT_EQ(plans.back().rows.size(), 1u);
  EXPECT_EQ(plans.back().rows[0].position, 8);
  EXPECT_EQ(plans.back().closed, std::vector<int32_t>{1});
  EXPECT_EQ(plans.back().granted.at(0).slot, 0);
  EXPECT_EQ(simulation.scheduler.counters().waiting, 1);

  std::optional<StepPlan> again;
  while (!again || again->opened.empty()) {
    again = simulation.plan(0);
    simulation.commit(0);
  }
  ASSERT_EQ(again->rows.size(), 1u);
  EXPECT_EQ(again->opened[0].prompt_tokens, 3) << "recomputed tokens are no prompt";
  EXPECT_EQ(again->rows[0].position, 0);
  EXPECT_EQ(again->rows[0].n_tokens, 8) << "3 of the prompt and the first of its 6 new tokens";
  const std::vector<int32_t> young = expected(kYoung, simulation.config).tokens;
  EXPECT_TRUE(std::equal(again->tokens.begin(), again->tokens.end(), young.begin()));
  simulation.finish();
  EXPECT_EQ(simulation.events.ended.at("young").preemptions, 1);
  expect_both_ended(simulation);
}

TEST(Preemption, TokensInFlightAreKeptAndBlocksArePinned) {
  Simulation simulation(tight_config(2, 3));  // lane 0: old, lane 1: young
  submit_both(simulation);
  for (int step = 0; step < 6; ++step) {  // positions 0 to 7 of both: prefill and 5 tokens
    for (int lane = 0; lane < 2; ++lane) {
      ASSERT_TRUE(simulation.plan(lane));
      if (step < 3) simulation.commit(lane);
    }
  }
  EXPECT_EQ(simulation.scheduler.in_flight(1), 3);
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, 0);
  simulation.commit(0);
  EXPECT_FALSE(simulation.plan(0))
      << "needs a block; the young one is evicted, but queued steps name its blocks";
  EXPECT_EQ(simulation.scheduler.counters().preemptions, 1);
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, 0);
  simulation.commit(1);
  EXPECT_FALSE(simulation.plan(1)) << "a victim leaves the plans at once";
  EXPECT_FALSE(simulation.plan(0));
  simulation.commit(1);
  EXPECT_EQ(simulation.scheduler.counters().waiting, 0);
  simulation.commit(1);
  EXPECT_EQ(simulation.scheduler.counters().waiting, 1);
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, 2);
  EXPECT_TRUE(simulation.plan(0));
  const int64_t before = simulation.row_tokens;
  simulation.finish();
  expect_both_ended(simulation);
  // Recomputed are its 3 + 6 tokens, 3 of which were in flight at the eviction; 5 more follow. The old one
  // has 5 left.
  EXPECT_EQ(simulation.row_tokens - before, 9 + 5 + 5);
}

TEST(Preemption, AVictimMayEndByItsTokensInFlight) {
  SchedulerConfig config = tight_config(2, 3);
  const std::vector<int32_t> young = expected(kYoung, config).tokens;
  Request stops = kYoung;
  stops.stop = {std::to_string(young[8])};  // its sixth token, in flight at the eviction
  ASSERT_EQ(expected(stops, config).new_tokens(), 6)
      << "choose other prompts: the token must not come earlier";
  Simulation simulation(config);
  ASSERT_FALSE(simulation.scheduler.submit(kOld, 0));
  ASSERT_FALSE(simulation.scheduler.submit(stops, 0));
  for (int step = 0; step < 6; ++step) {
    for (int lane = 0; lane < 2; ++lane) {
      ASSERT_TRUE(simulation.plan(lane));
      if (step < 3) simulation.commit(lane);
    }
  }
  simulation.commit(0);
  EXPECT_FALSE(simulation.plan(0));
  EXPECT_EQ(simulation.scheduler.counters().preemptions, 1);
  while (simulation.commit(1)) {
  }
  EXPECT_EQ(simulation.events.ended.at("young").finish, FinishReason::stop);
  EXPECT_EQ(simulation.scheduler.counters().waiting, 0);
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, 2);
  simulation.finish();
}

TEST(Preemption, VictimsComeBackBeforeAllThatWait) {
  Simulation simulation(tight_config(1, 1));
  submit_both(simulation);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("third", {7}, 1), 0));
  simulation.finish();
  EXPECT_EQ(simulation.scheduler.counters().preemptions, 1);
  EXPECT_EQ(simulation.events.order, (std::vector<std::string>{"old", "young", "third"}));
}

TEST(Preemption, NothingIsAdmittedWhileAVictimHasStepsInFlight) {
  SchedulerConfig config = tight_config(3, 3);  // lanes: old, middle, young
  config.batch_size = 4;
  config.prefill_chunk = 16;
  config.blocks = 8;
  Simulation simulation(config);
  Request middle = make_request("middle", {1, 2, 3, 4, 5, 6, 7, 8, 9}, 6);
  ASSERT_FALSE(simulation.scheduler.submit(kOld, 0));
  ASSERT_FALSE(simulation.scheduler.submit(middle, 0));
  ASSERT_FALSE(simulation.scheduler.submit(kYoung, 0));
  for (int step = 0; step < 6; ++step) {  // positions 0 to 7 of old and young, 0 to 13 of middle
    for (int lane = 0; lane < 3; ++lane) {
      ASSERT_TRUE(simulation.plan(lane));
      if (step < 3) simulation.commit(lane);
    }
  }
  ASSERT_FALSE(simulation.scheduler.submit(make_request("third", {7}, 1), 0));
  simulation.commit(0);
  EXPECT_FALSE(simulation.plan(0));
  EXPECT_EQ(simulation.scheduler.counters().preemptions, 1);
  while (simulation.commit(1)) {
  }
  EXPECT_EQ(simulation.events.order, std::vector<std::string>{"middle"});
  EXPECT_TRUE(simulation.plan(0));
  EXPECT_EQ(simulation.scheduler.counters().free_blocks, 3);
  EXPECT_EQ(simulation.scheduler.counters().waiting, 1)
      << "3 blocks would do for it, but it is younger than the victim";
  simulation.finish();
  EXPECT_EQ(simulation.events.ended.size(), 4u);
}

TEST(Preemption, AVictimIsServedWhileDraining) {
  Simulation simulation(tight_config(1, 2));
  submit_both(simulation);
  ASSERT_FALSE(simulation.scheduler.submit(make_request("third", {7}, 1), 0));
  simulation.plan_all();
  simulation.scheduler.drain();
  simulation.finish();
  EXPECT_EQ(simulation.scheduler.counters().preemptions, 1);
  expect_both_ended(simulation);
}

// What the tests stand on: the stage model does refuse a block used twice, and its tokens depend on every
// entry read.
TEST(StageModel, SeesFaultyPlans) {
  const SchedulerConfig config = tight_config(1, 2);
  StepPlan plan;
  plan.opened = {{0, 4, {}}, {1, 4, {}}};
  plan.granted = {{0, {0}}, {1, {0}}};
  EXPECT_THROW(StageModel(config).run(plan), Error) << "one block, two slots";

  plan.granted = {{0, {0}}, {1, {1}}};
  plan.rows = {{0, 0, 4, 0, 1}, {1, 0, 4, 4, 1}};
  plan.tokens = {1, 2, 3, 4, 9, 2, 3, 4};
  StageModel stage(config);
  const StepResult result = stage.run(plan);
  EXPECT_NE(result.tokens.at(0), result.tokens.at(1)) << "only the first token differs";

  StepPlan next;
  next.step = 1;
  next.rows = {{0, 4, 1, kFromSlot, 1}};
  EXPECT_THROW(StageModel(stage).run(next), Error) << "position 4 has no block";
  next.rows.clear();
  next.closed = {0};
  EXPECT_THROW(StageModel(stage).run(next), Error) << "a queued step names the slot";
  stage.completed(0);
  next.opened = {{0, 1, {}}};
  next.granted = {{0, {0}}};
  next.rows = {{0, 0, 1, 0, 0}};
  next.tokens = {1};
  stage.run(next);
  StepPlan late;
  late.step = 2;
  late.rows = {{0, 2, 1, kFromSlot, 1}};
  EXPECT_THROW(stage.run(late), Error) << "position 1 was never written";
}

}  // namespace
}  // namespace pipeinfer::testing

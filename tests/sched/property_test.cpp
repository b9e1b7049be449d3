// Random requests under random configurations and delays: every request gives what it gives alone.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "pipeinfer/base/error.h"
#include "simulation.h"

namespace pipeinfer::testing {
namespace {

int between(std::mt19937_64& random, int low, int high) {
  return low + static_cast<int>(random() % static_cast<uint64_t>(high - low + 1));
}

SchedulerConfig random_config(std::mt19937_64& random) {
  SchedulerConfig config;
  config.lanes = between(random, 1, 5);
  config.batch_size = between(random, 1, 9);
  config.prefill_chunk = between(random, 1, 24);
  config.block_size = 1 << between(random, 0, 3);
  config.context = between(random, 24, 64);
  const int most = (config.context + config.block_size - 1) / config.block_size;  // blocks of a full context
  config.blocks =
      between(random, std::max(1, most / 2), random() % 4 == 0 ? most * config.batch_size : 2 * most);
  config.steps_ahead = between(random, 1, 4);
  config.want_top = random() % 2 == 0;
  config.eos_ids = {0, 7};
  return config;
}

Request random_request(std::mt19937_64& random, const SchedulerConfig& config, int index) {
  std::vector<int32_t> prompt(static_cast<size_t>(between(random, 1, config.context - 1)));
  if (random() % 2 == 0) prompt.resize(std::min<size_t>(prompt.size(), 6));
  for (int32_t& token : prompt) token = between(random, 0, kVocabulary - 1);
  const int size = static_cast<int>(prompt.size());
  Request request = make_request("request-" + std::to_string(index), std::move(prompt), 0);
  if (random() % 6 == 0) {
    request.score_from = between(random, 0, size - 1);
  } else {
    request.max_new_tokens = between(random, 1, config.context - size);
  }
  request.ignore_eos = random() % 2 == 0;
  if (random() % 3 == 0) request.stop = {std::to_string(between(random, 0, kVocabulary - 1))};
  return request;
}

struct Seen {
  int64_t preemptions = 0, finished[5] = {}, refused = 0;
};

// Submits as it goes; returns all plans, serialized.
std::vector<std::vector<std::byte>> run_case(uint64_t seed, Seen& seen) {
  std::mt19937_64 random(seed);
  const SchedulerConfig config = random_config(random);
  Simulation simulation(config);
  std::map<std::string, Sequence> wanted;
  int64_t row_limit = 0;
  for (int i = 0, n = between(random, 1, 24); i < n; ++i) {
    const Request request = random_request(random, config, i);
    if (simulation.scheduler.submit(request, simulation.now)) {
      ++seen.refused;
      continue;
    }
    wanted.emplace(request.id, expected(request, config));
    row_limit += static_cast<int64_t>(request.prompt_tokens.size()) + request.max_new_tokens;
    const int lane = between(random, 0, config.lanes - 1);
    if (random() % 2 == 0) simulation.plan(lane);
    if (random() % 3 == 0) simulation.commit(lane);
  }
  simulation.finish_randomly(random);

  EXPECT_EQ(simulation.events.ended.size(), wanted.size());
  for (const auto& [id, want] : wanted) {
    const Sequence& have = simulation.events.ended.at(id);
    EXPECT_EQ(have.tokens, want.tokens) << id;
    EXPECT_STREQ(finish_reason_name(have.finish), finish_reason_name(want.finish)) << id;
    EXPECT_EQ(have.top.size(), want.top.size()) << id;
    for (size_t i = 0; i < std::min(have.top.size(), want.top.size()); ++i) {
      EXPECT_EQ(have.top[i].token, want.top[i].token) << id << " top " << i;
      EXPECT_EQ(have.top[i].logit, want.top[i].logit) << id << " top " << i;
    }
    EXPECT_LE(have.submitted_s, have.first_token_s);
    EXPECT_LE(have.first_token_s, have.finished_s);
    ++seen.finished[static_cast<int>(have.finish)];
  }
  const SchedulerCounters counters = simulation.scheduler.counters();
  EXPECT_EQ(counters.waiting, 0);
  EXPECT_EQ(counters.running, 0);
  EXPECT_EQ(counters.free_blocks, config.blocks);
  EXPECT_EQ(counters.steps, static_cast<int64_t>(simulation.plans.size()));
  // No starvation: what is computed is each request once, plus at most a context for each preemption, plus
  // overruns.
  EXPECT_LE(simulation.row_tokens, row_limit + counters.preemptions * config.context);
  seen.preemptions += counters.preemptions;
  return std::move(simulation.plans);
}

TEST(SchedulerProperty, EveryRequestGivesWhatItGivesAlone) {
  Seen seen;
  for (uint64_t seed = 0; seed < 1500 && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ASSERT_NO_THROW(run_case(seed, seen)) << "seed " << seed;
  }
  // The cases reach what they are for.
  EXPECT_GT(seen.preemptions, 1000);
  EXPECT_GT(seen.refused, 100);
  EXPECT_GT(seen.finished[static_cast<int>(FinishReason::eos)], 500);
  EXPECT_GT(seen.finished[static_cast<int>(FinishReason::stop)], 100);
  EXPECT_GT(seen.finished[static_cast<int>(FinishReason::length)], 1000);
  RecordProperty("preemptions", static_cast<int>(seen.preemptions));
}

TEST(SchedulerProperty, TheSameCallsGiveTheSamePlans) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Seen seen;
    EXPECT_EQ(run_case(seed, seen), run_case(seed, seen)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace pipeinfer::testing

// A coordinator in miniature: submits, asks for plans, runs them on the StageModel and delivers results when
// it likes.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "pipeinfer/sched/scheduler.h"
#include "stage_model.h"

namespace pipeinfer::testing {

/// Ends are kept by id. A request stops at a token whose text (its number) is in `stop`.
struct Recorder : SchedulerEvents {
  std::map<std::string, Sequence> ended;
  std::vector<std::string> order;  ///< ids as they ended

  bool on_token(const Sequence& sequence) override {
    PI_CHECK(sequence.finish == FinishReason::none, sequence.request.id, " gets tokens after its end");
    return std::count(sequence.request.stop.begin(), sequence.request.stop.end(),
                      std::to_string(sequence.tokens.back())) > 0;
  }
  void on_finish(const Sequence& sequence) override {
    PI_CHECK(ended.emplace(sequence.request.id, sequence).second, sequence.request.id, " ends twice");
    order.push_back(sequence.request.id);
  }
};

inline Request make_request(std::string id, std::vector<int32_t> prompt, int32_t max_new_tokens) {
  Request request;
  request.id = std::move(id);
  request.prompt_tokens = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  return request;
}

/// What the request must give, whatever the configuration: one sequence, one token after another.
inline Sequence expected(const Request& request, const SchedulerConfig& config) {
  Sequence sequence;
  sequence.request = request;
  sequence.tokens = request.prompt_tokens;
  uint64_t hash = 0;
  const auto add_top = [&] {
    for (int rank = 0; config.want_top && rank < kTopLogits; ++rank)
      sequence.top.push_back(candidate(hash, rank));
  };
  for (size_t i = 0; i < request.prompt_tokens.size(); ++i) {
    hash = hash_token(hash, request.prompt_tokens[i]);
    if (request.score_from >= 0 && static_cast<int32_t>(i) >= request.score_from) add_top();
  }
  sequence.finish = FinishReason::length;
  while (sequence.new_tokens() < request.max_new_tokens) {
    add_top();
    const int32_t token = candidate(hash, 0).token;
    sequence.tokens.push_back(token);
    hash = hash_token(hash, token);
    if (std::count(config.eos_ids.begin(), config.eos_ids.end(), token) > 0 && !request.ignore_eos) {
      sequence.finish = FinishReason::eos;
      break;
    }
    if (std::count(request.stop.begin(), request.stop.end(), std::to_string(token)) > 0) {
      sequence.finish = FinishReason::stop;
      break;
    }
  }
  return sequence;
}

struct Simulation {
  SchedulerConfig config;
  Recorder events;
  Scheduler scheduler;
  StageModel stage;
  std::vector<std::deque<StepResult>> results;  ///< [lanes] not delivered yet
  std::vector<std::vector<std::byte>> plans;    ///< all, serialized
  int64_t row_tokens = 0;                       ///< of all plans
  double now = 1;

  explicit Simulation(const SchedulerConfig& config_)
      : config(config_),
        scheduler(config_, events),
        stage(config_),
        results(static_cast<size_t>(config_.lanes)) {}

  /// Asks for a plan of the lane and runs it.
  std::optional<StepPlan> plan(int lane) {
    std::optional<StepPlan> plan = scheduler.plan(lane);
    if (plan) {
      results[static_cast<size_t>(lane)].push_back(stage.run(*plan));
      plans.push_back(plan->serialize());
      row_tokens += plan->n_tokens();
    }
    PI_CHECK(scheduler.in_flight(lane) <= config.steps_ahead, "lane ", lane);
    PI_CHECK(scheduler.in_flight(lane) == static_cast<int>(results[static_cast<size_t>(lane)].size()),
             "lane ", lane);
    return plan;
  }

  /// Asks all lanes until none has a plan.
  void plan_all() {
    for (bool any = true; any;) {
      any = false;
      for (int lane = 0; lane < config.lanes; ++lane) any = plan(lane) || any;
    }
  }

  /// Delivers the oldest result of the lane, if there is one.
  bool commit(int lane) {
    auto& queue = results[static_cast<size_t>(lane)];
    if (queue.empty()) return false;
    const StepResult result = queue.front();
    queue.pop_front();
    stage.completed(result.step);
    scheduler.commit(result, now++);
    return true;
  }

  bool commit_any() {
    bool any = false;
    for (int lane = 0; lane < config.lanes; ++lane) any = commit(lane) || any;
    return any;
  }

  /// Plans and commits until all is done. Throws where nothing moves although there is work.
  void finish() {
    for (plan_all(); !scheduler.idle(); plan_all()) PI_CHECK(commit_any(), "nothing moves");
  }

  /// Plans and results in random order.
  void finish_randomly(std::mt19937_64& random) {
    while (!scheduler.idle()) {
      const int lane = static_cast<int>(random() % static_cast<uint64_t>(config.lanes));
      if (random() % 2 == 0) {
        plan(lane);
      } else if (!commit(lane) &&
                 std::all_of(results.begin(), results.end(), [](auto& q) { return q.empty(); })) {
        plan_all();
        PI_CHECK(scheduler.idle() || commit_any(), "nothing moves");
      }
    }
  }
};

}  // namespace pipeinfer::testing

// Plans survive the wire, and what does not fit the limits is refused in words.
#include "pipeinfer/batch/step_plan.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

constexpr PlanLimits kLimits{.slots = 4,
                             .blocks = 8,
                             .block_size = 16,
                             .context = 64,
                             .vocab_size = 100,
                             .lanes = 2,
                             .max_tokens = 40};

StepPlan sample_plan() {
  StepPlan plan;
  plan.step = 7;
  plan.lane = 1;
  plan.want_top = true;
  plan.closed = {3};
  plan.opened = {{2, 5, {.temperature = 0.5f, .top_k = 3, .seed = 9, .id_hash = 11}}};
  plan.granted = {{2, {6, 1}}, {0, {5}}};
  plan.rows = {{0, 16, 1, kFromSlot, 1}, {2, 0, 5, 0, 1}};
  plan.tokens = {1, 2, 3, 4, 99};
  return plan;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::failed);
    return e.what();
  }
  return "nothing was thrown";
}

TEST(StepPlan, SurvivesTheWire) {
  const StepPlan plan = sample_plan();
  const StepPlan back = StepPlan::parse(plan.serialize());
  EXPECT_EQ(back.serialize(), plan.serialize());
  EXPECT_EQ(back.step, 7u);
  EXPECT_TRUE(back.want_top);
  EXPECT_EQ(back.granted[0].blocks, (std::vector<int32_t>{6, 1}));
  EXPECT_FLOAT_EQ(back.opened[0].sampling.temperature, 0.5f);
  EXPECT_EQ(back.n_tokens(), 6);
  EXPECT_EQ(back.n_decode(), 1);
  EXPECT_EQ(back.n_samples(), 2);
  back.check(kLimits);
}

TEST(StepPlan, EveryTruncationAndExtensionIsRefused) {
  auto bytes = sample_plan().serialize();
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_THROW(StepPlan::parse(std::span(bytes).first(n)), Error) << n << " bytes";
  bytes.push_back(std::byte{0});
  EXPECT_NE(message_of([&] { StepPlan::parse(bytes); }).find("1 bytes are left over"), std::string::npos);
}

TEST(StepPlan, RandomBytesNeverReadOutside) {
  std::mt19937 rng(1);
  const auto good = sample_plan().serialize();
  for (int i = 0; i < 2000; ++i) {
    auto bytes = good;
    for (int k = 0; k < 4; ++k) bytes[rng() % bytes.size()] = static_cast<std::byte>(rng());
    try {
      StepPlan::parse(bytes).check(kLimits);
    } catch (const Error&) {
    }
  }
}

TEST(StepPlan, WhatDoesNotFitIsNamed) {
  const auto broken = [](const std::function<void(StepPlan&)>& change) {
    StepPlan plan = sample_plan();
    change(plan);
    return message_of([&] { plan.check(kLimits); });
  };
  EXPECT_EQ(broken([](StepPlan& p) { p.lane = 2; }),
            "the plan of step 7 is refused: lane 2 is outside [0, 2)");
  EXPECT_EQ(broken([](StepPlan& p) { p.closed = {4}; }),
            "the plan of step 7 is refused: slot 4 is outside [0, 4)");
  EXPECT_EQ(broken([](StepPlan& p) { p.granted[0].blocks[0] = 8; }),
            "the plan of step 7 is refused: block 8 is outside [0, 8)");
  EXPECT_EQ(broken([](StepPlan& p) { p.tokens[4] = 100; }),
            "the plan of step 7 is refused: token 100 is outside [0, 100)");
  EXPECT_EQ(broken([](StepPlan& p) { p.rows[1].slot = 0; }),
            "the plan of step 7 is refused: slot 0 has two rows");
  EXPECT_EQ(broken([](StepPlan& p) { p.rows[1].position = 60; }),
            "the plan of step 7 is refused: slot 2 has 5 tokens at position 60, the context is 64");
  EXPECT_EQ(broken([](StepPlan& p) { p.rows[1].first_token = 1; }),
            "the plan of step 7 is refused: slot 2 takes 5 tokens from 1 of 5");
  EXPECT_EQ(broken([](StepPlan& p) { p.rows[1].n_samples = 6; }),
            "the plan of step 7 is refused: slot 2 samples 6 of 5 tokens");
  EXPECT_EQ(broken([](StepPlan& p) { p.opened[0].prompt_tokens = 0; }),
            "the plan of step 7 is refused: slot 2 has a prompt of 0 tokens, the context is 64");
}

TEST(StepResult, SurvivesTheWireAndRefusesAnotherVersion) {
  const StepResult result{3, 1, {4, 5}, {{4, 1.5f}, {6, 0.5f}}};
  auto bytes = result.serialize();
  EXPECT_EQ(StepResult::parse(bytes).tokens, result.tokens);
  EXPECT_EQ(StepResult::parse(bytes).top[1].token, 6);
  bytes[0] ^= std::byte{1};
  EXPECT_NE(message_of([&] { StepResult::parse(bytes); }).find("version"), std::string::npos);
}

}  // namespace
}  // namespace pipeinfer

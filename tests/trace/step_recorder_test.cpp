#include "pipeinfer/trace/step_recorder.h"

#include <gtest/gtest.h>

namespace pipeinfer {
namespace {

StepTimes step(uint64_t number, double compute_begin_s, double compute_end_s) {
  StepTimes times;
  times.step = number;
  times.n_tokens = 5;
  times.n_decode = 2;
  times.recv_begin_s = times.recv_end_s = compute_begin_s;
  times.compute_begin_s = compute_begin_s;
  times.compute_end_s = compute_end_s;
  return times;
}

std::vector<uint64_t> numbers(const std::vector<StepTimes>& steps) {
  std::vector<uint64_t> numbers;
  for (const StepTimes& times : steps) numbers.push_back(times.step);
  return numbers;
}

using Numbers = std::vector<uint64_t>;

TEST(StepRecorder, KeepsTheNewestAndCountsAll) {
  StepRecorder recorder(3);
  for (uint64_t i = 0; i < 5; ++i) recorder.add(step(i, 1, 1.5));
  EXPECT_EQ(numbers(recorder.steps()), (Numbers{2, 3, 4}));
  const StepTotals totals = recorder.totals();
  EXPECT_EQ(totals.steps, 5);
  EXPECT_EQ(totals.tokens, 25);
  EXPECT_EQ(totals.decode_tokens, 10);
  EXPECT_EQ(totals.compute_s, 2.5);
}

TEST(StepRecorder, AMeasurementBeginsWithClear) {
  StepRecorder recorder(3);
  recorder.add(step(0, 0, 1));
  recorder.add(step(1, 0, 1));
  recorder.clear();
  EXPECT_TRUE(recorder.steps().empty());
  recorder.add(step(2, 0, 1));
  EXPECT_EQ(numbers(recorder.steps()), Numbers{2});
  EXPECT_EQ(numbers(recorder.all_steps()), (Numbers{0, 1, 2}));
  EXPECT_EQ(recorder.totals().steps, 3);
  for (uint64_t i = 3; i < 9; ++i) recorder.add(step(i, 0, 1));
  EXPECT_EQ(numbers(recorder.steps()), (Numbers{6, 7, 8}));
}

StepTimes received(uint64_t number, double recv_begin_s, double recv_end_s, double compute_begin_s,
                   double compute_end_s) {
  StepTimes times = step(number, compute_begin_s, compute_end_s);
  times.received_step = static_cast<int64_t>(number);
  times.recv_begin_s = recv_begin_s;
  times.recv_end_s = recv_end_s;
  return times;
}

void expect_split(const StageTime& time, double wall, double compute, double exposed, double overlapped,
                  double idle) {
  EXPECT_NEAR(time.wall_s, wall, 1e-12);
  EXPECT_NEAR(time.compute_s, compute, 1e-12);
  EXPECT_NEAR(time.comm_exposed_s, exposed, 1e-12);
  EXPECT_NEAR(time.comm_overlapped_s, overlapped, 1e-12);
  EXPECT_NEAR(time.idle_s, idle, 1e-12);
}

TEST(StageTime, OfNothingIsZero) { expect_split(split_stage_time({}, {}), 0, 0, 0, 0, 0); }

TEST(StageTime, AStageThatReceivesNothingComputesOrIsIdle) {
  expect_split(split_stage_time({step(0, 1, 3), step(1, 3, 4), step(2, 6, 8)}, {}), 7, 5, 0, 0, 2);
}

TEST(StageTime, AReceiveIsIdleUntilItsSendStarts) {
  // Waits from 0; the data is sent from 4 to 5; computes from 5 to 8.
  expect_split(split_stage_time({received(0, 0, 5, 5, 8)}, {{0, 4}}), 8, 3, 1, 0, 4);
}

TEST(StageTime, ATransferBehindComputeIsOverlapped) {
  // While step 0 computes (1 to 5), step 1 is received: sent from 3 to 6. 3 to 5 is hidden, 5 to 6 is
  // exposed.
  expect_split(split_stage_time({received(0, 0, 1, 1, 5), received(1, 1, 6, 6, 8)}, {{0, 0}, {1, 3}}), 8, 6,
               2, 2, 0);
}

TEST(StageTime, WhatIsReceivedButNotComputedYetIsIdle) {
  // As above, but step 1 begins 1 second after its data came: only 5 to 6 is communication.
  expect_split(split_stage_time({received(0, 0, 1, 1, 5), received(1, 1, 6, 7, 8)}, {{0, 0}, {1, 3}}), 8, 5,
               2, 2, 1);
}

TEST(StageTime, TheMatchingSendIsFoundByItsStep) {
  // A first stage: step 7's data is what step 3 sampled. Sends of other steps do not matter.
  StepTimes first = received(7, 0, 4, 4, 5);
  first.received_step = 3;
  expect_split(split_stage_time({first}, {{2, 0}, {3, 3}, {7, 1}}), 5, 1, 1, 0, 3);
}

TEST(StageTime, AStartBeforeTheReceiveCountsFromTheReceive) {
  expect_split(split_stage_time({received(0, 2, 3, 3, 4)}, {{0, -5}}), 2, 1, 1, 0, 0);
}

}  // namespace
}  // namespace pipeinfer

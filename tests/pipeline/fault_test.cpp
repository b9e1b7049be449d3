// A rank that fails, falls silent or hangs ends the run on every rank, with one reason.
#include <gtest/gtest.h>

#include "pipeinfer/base/clock.h"
#include "threads_run.h"

namespace pipeinfer::testing {
namespace {

JobSetup setup_of(int n_stages) {
  SchedulerConfig config = small_scheduler(n_stages, 8);
  JobSetup setup;
  setup.layout = make_layout(n_stages, config);
  for (int i = 0; i < 200; ++i) {
    Request request;
    request.id = cat("r", i);
    request.prompt_tokens = {1, 2, 3};
    request.max_new_tokens = 40;
    setup.requests.push_back(request);
  }
  setup.timeout_s = 0.6;
  return setup;
}

void expect_failed(const JobOutcome& outcome, const std::string& reason) {
  for (size_t r = 0; r < outcome.ranks.size(); ++r) {
    EXPECT_EQ(outcome.ranks[r].farewell.code, ExitCode::failed) << "rank " << r;
    EXPECT_NE(outcome.ranks[r].error.find(reason), std::string::npos)
        << "rank " << r << " says: " << outcome.ranks[r].error;
  }
}

TEST(Fault, AnErrorOnAnyRankIsEverybodysReason) {
  for (int faulty = 0; faulty < 3; ++faulty) {
    SCOPED_TRACE(cat("rank ", faulty));
    JobSetup setup = setup_of(3);
    const auto fail = [](const StepPlan& plan) {
      if (plan.step == 20) runtime_failure("the planted fault");
    };
    setup.prepare = [&](int rank, FakeStage& stage, LocalWorld&) {
      if (rank == faulty && rank != 0) stage.before_run = fail;
    };
    if (faulty == 0) setup.on_plan = [&](const StepPlan& plan, std::atomic<bool>*) { fail(plan); };
    const JobOutcome outcome = run_job(setup);
    expect_failed(outcome, "the planted fault");
    for (const RankOutcome& rank : outcome.ranks) EXPECT_TRUE(rank.farewell.orderly);
  }
}

TEST(Fault, ASilentRankIsLost) {
  JobSetup setup = setup_of(3);
  setup.prepare = [&](int rank, FakeStage& stage, LocalWorld& world) {
    if (rank == 2)
      stage.before_run = [&](const StepPlan& plan) {
        if (plan.step == 20) world.silence(2);
      };
  };
  const double begin_s = now_s();
  const JobOutcome outcome = run_job(setup);
  EXPECT_LT(now_s() - begin_s, 15);
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(outcome.ranks[r].farewell.code, ExitCode::failed);
    EXPECT_FALSE(outcome.ranks[r].farewell.orderly);
    EXPECT_NE(outcome.ranks[r].error.find("rank 2"), std::string::npos) << outcome.ranks[r].error;
    EXPECT_NE(outcome.ranks[r].error.find("no sign of life"), std::string::npos) << outcome.ranks[r].error;
  }
}

TEST(Fault, ARankThatShowsLifeButDoesNotGetOnIsStuck) {
  JobSetup setup = setup_of(2);
  setup.prepare = [&](int rank, FakeStage& stage, LocalWorld&) {
    if (rank == 1)
      stage.before_run = [&](const StepPlan& plan) {
        if (plan.step != 20) return;
        for (int i = 0; i < 400; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
        runtime_failure("it woke up");
      };
  };
  const double begin_s = now_s();
  const JobOutcome outcome = run_job(setup);
  EXPECT_LT(now_s() - begin_s, 15);
  EXPECT_EQ(outcome.ranks[0].farewell.code, ExitCode::failed);
  EXPECT_NE(outcome.ranks[0].error.find("rank 1"), std::string::npos) << outcome.ranks[0].error;
  EXPECT_NE(outcome.ranks[0].error.find("is stuck"), std::string::npos) << outcome.ranks[0].error;
}

TEST(Fault, ALongStepOnACpuIsNotStuck) {
  for (int slow = 0; slow < 2; ++slow) {
    JobSetup setup = setup_of(2);
    setup.requests.resize(4);
    setup.prepare = [&](int rank, FakeStage& stage, LocalWorld&) {
      if (rank != slow) return;
      stage.before_run = [](const StepPlan& plan) {
        if (plan.step != 20) return;
        for (const double end_s = now_s() + 2.5; now_s() < end_s;) continue;  // beyond every deadline
      };
    };
    const JobOutcome outcome = run_job(setup);
    for (const RankOutcome& rank : outcome.ranks) EXPECT_EQ(rank.farewell.code, ExitCode::ok) << rank.error;
    EXPECT_EQ(outcome.tokens.size(), 4u);
  }
}

// A CUDA or MPI call that never returns: the process ends all the same, with the fault's code.
TEST(FaultDeathTest, ARankThatHangsAfterAFaultEndsByForce) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto hang = [] {
    LocalWorld world(1);
    const auto job = world.job(0);
    Log log(0);
    const std::atomic<bool> stop{false};
    Watchdog watchdog(*job, log, stop, 60);
    watchdog.report(Error(ExitCode::usage, "the planted fault"));
    std::this_thread::sleep_for(std::chrono::seconds(60));
  };
  EXPECT_EXIT(hang(), ::testing::ExitedWithCode(2), "pipeinfer: the planted fault");
}

TEST(Fault, ASlowRankIsNotTakenForDead) {
  JobSetup setup = setup_of(2);
  setup.requests.resize(4);
  setup.prepare = [&](int rank, FakeStage&, LocalWorld&) {
    if (rank == 1)
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));  // loading, beyond the deadline
  };
  const JobOutcome outcome = run_job(setup);
  for (const RankOutcome& rank : outcome.ranks) EXPECT_EQ(rank.farewell.code, ExitCode::ok) << rank.error;
  EXPECT_EQ(outcome.tokens.size(), 4u);
}

}  // namespace
}  // namespace pipeinfer::testing

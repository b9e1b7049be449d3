// Who started this process, by environments as the launchers make them.
#include "pipeinfer/comm/launch.h"

#include <gtest/gtest.h>

#include <map>

#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

std::optional<Launch> launch_of(const std::map<std::string, std::string>& environment) {
  return find_launch([&](const char* name) {
    auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

TEST(Launch, AloneWithoutALauncher) {
  EXPECT_FALSE(launch_of({}));
  EXPECT_FALSE(launch_of({{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}))
      << "sbatch, salloc";
}

TEST(Launch, MpirunGoesBeforeTheStepOfItsDaemons) {
  const auto launch = launch_of({{"OMPI_COMM_WORLD_SIZE", "8"},
                                 {"OMPI_COMM_WORLD_RANK", "5"},
                                 {"SLURM_STEP_NUM_TASKS", "2"},
                                 {"SLURM_PROCID", "1"},
                                 {"PMIX_RANK", "5"}});
  ASSERT_TRUE(launch);
  EXPECT_EQ(launch->launcher, "mpirun");
  EXPECT_EQ(launch->tasks, 8);
  EXPECT_EQ(launch->rank, 5);
  EXPECT_TRUE(launch->has_pmi);
}

TEST(Launch, SrunWithAndWithoutPmix) {
  std::map<std::string, std::string> environment = {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}};
  const auto without = launch_of(environment);
  environment["PMIX_RANK"] = "3";
  const auto with = launch_of(environment);
  ASSERT_TRUE(with && without);
  EXPECT_EQ(with->launcher, "Slurm");
  EXPECT_EQ(with->tasks, 4);
  EXPECT_EQ(with->rank, 3);
  EXPECT_TRUE(with->has_pmi);
  EXPECT_FALSE(without->has_pmi);
}

TEST(Launch, OtherLaunchers) {
  const auto hydra = launch_of({{"PMI_SIZE", "2"}, {"PMI_RANK", "1"}});
  ASSERT_TRUE(hydra);
  EXPECT_EQ(hydra->tasks, 2);
  EXPECT_EQ(hydra->rank, 1);
  const auto pmix = launch_of({{"PMIX_RANK", "1"}});
  ASSERT_TRUE(pmix);
  EXPECT_FALSE(pmix->tasks);
}

TEST(Launch, WorldMustBeWhatWasStarted) {
  check_world({"Slurm", 4}, 4);
  check_world({"mpirun", std::nullopt}, 4);
  try {
    check_world({"Slurm", 4}, 1);
    FAIL() << "4 tasks, a world of 1";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_STREQ(error.what(),
                 "Slurm started 4 tasks but MPI sees a world of 1: use srun --mpi=pmix, or mpirun inside the "
                 "allocation");
  }
}

}  // namespace
}  // namespace pipeinfer

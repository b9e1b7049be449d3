// Jobs in which something goes wrong, as processes (see mpi_fault_rank.cpp): exit codes, sentences, deadlines.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {
namespace {

struct Outcome {
  int exit_code;
  std::string output;  ///< stdout and stderr
};

Outcome run(const std::string& command) {
  // Under ASan: Open MPI itself leaves memory behind.
  FILE* pipe = popen(("export ASAN_OPTIONS=detect_leaks=0; ( " + command + " ) 2>&1").c_str(), "r");
  Outcome outcome;
  std::array<char, 4096> part;
  while (size_t n = fread(part.data(), 1, part.size(), pipe)) outcome.output.append(part.data(), n);
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

Outcome mpirun(const std::string& what, const std::string& options = "-n 2") {
  return run(
      cat("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 60 mpirun --oversubscribe ",
          options, " ", FAULT_RANK, " ", what));
}

void expect(const Outcome& outcome, int exit_code, const std::string& sentence) {
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.output;
  EXPECT_NE(outcome.output.find(sentence), std::string::npos) << outcome.output;
}

TEST(MpiJob, KnowsItsPlace) {
  const Outcome outcome = mpirun("place", "-n 3");
  expect(outcome, 0, "rank 0 of 3, local 0 of 3, hosts 3\n");
  expect(outcome, 0, "rank 2 of 3, local 2 of 3, hosts 3\n");
}

TEST(MpiJob, NoticesAStoppedPeerAndItsReturn) {
  const Outcome outcome = mpirun("stopped");
  expect(outcome, 0, "rank 1 is silent\nrank 1 is back\n");
  EXPECT_EQ(outcome.output.find("blames"), std::string::npos) << outcome.output;
}

TEST(MpiJob, NoticesADeadPeer) {
  const Outcome outcome = mpirun("killed", "-n 2 --enable-recovery");  // its exit code is then not the ranks'
  EXPECT_NE(outcome.output.find("rank 1 is silent\n"), std::string::npos) << outcome.output;
}

TEST(MpiJob, AbortTakesAWaitingRankDown) {
  const Outcome outcome = mpirun("aborted");
  expect(outcome, 1, "");
  EXPECT_EQ(outcome.output.find("received"), std::string::npos) << outcome.output;
}

TEST(MpiJob, StartHasADeadline) {
  expect(mpirun("absent"), 1, "pipeinfer: MPI_Init did not finish within 2 s: ");
}

TEST(MpiJob, EndHasADeadline) { expect(mpirun("staying"), 1, "MPI_Finalize did not finish within 1 s: "); }

TEST(MpiJob, ExitCodeOfAllRanksIsTheJobs) { expect(mpirun("all_exit_with_3"), 3, ""); }

TEST(MpiJob, OneTaskNeedsNoMpi) {
  // MPI_Init would fail with this setting: a lone rank must not even try.
  expect(run(cat("OMPI_MCA_pml=none ", FAULT_RANK, " place")), 0, "rank 0 of 1, local 0 of 1, hosts 1\n");
}

TEST(MpiJob, RefusesAWorldThatTheLauncherDidNotMean) {
  expect(run(cat("SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=0 ", FAULT_RANK, " place")), 2,
         "Slurm started 4 tasks but MPI sees a world of 1: use srun --mpi=pmix, or mpirun inside the "
         "allocation\n");
  expect(run(cat("PMI_SIZE=3 PMI_RANK=0 ", FAULT_RANK, " place")), 2,
         "mpirun started 3 tasks but MPI sees a world of 1: use the mpirun of the MPI library");
  // Every task learns of it; which one says it is the program's choice.
  expect(run(cat("SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=3 ", FAULT_RANK, " place")), 2,
         "Slurm started 4 tasks but MPI sees a world of 1: use srun --mpi=pmix, or mpirun inside the "
         "allocation\n");
}

}  // namespace
}  // namespace pipeinfer

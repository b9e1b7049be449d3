// Which ranks may not use NCCL, and what a build or device without it says.
#include <gtest/gtest.h>

#include "pipeinfer/base/error.h"
#include "pipeinfer/comm/job.h"
#include "pipeinfer/comm/local.h"
#include "pipeinfer/comm/nccl.h"

namespace pipeinfer {
namespace {

TEST(GpuSharing, RanksMustOwnTheirGpus) {
  refuse_shared_gpus({"node1 0000:17:00.0", "node2 0000:17:00.0", "node1 0000:18:00.0"});
  refuse_shared_gpus({"", "", "node1 0000:17:00.0"});
  try {
    refuse_shared_gpus({"node1 0000:17:00.0", "node1 0000:18:00.0", "node1 0000:17:00.0"});
    FAIL() << "ranks 0 and 2 share a GPU";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_STREQ(
        error.what(),
        "ranks 0 and 2 share one GPU (node1 0000:17:00.0), which NCCL does not allow: start fewer ranks a "
        "node, or use --transport mpi");
  }
}

TEST(MakeTransport, NcclNeedsAGpuAndABuildWithIt) {
  auto job = LocalWorld(2).job(0);
  EXPECT_TRUE(make_transport(TransportKind::automatic, Device{}, *job));
  EXPECT_TRUE(make_transport(TransportKind::mpi, Device{}, *job));
  try {
    make_transport(TransportKind::nccl, Device{}, *job);
    FAIL() << "NCCL on a CPU";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_STREQ(error.what(),
                 nccl_built() ? "transport nccl: the device is a CPU (use --transport mpi, or --device cuda)"
                              : "transport nccl: this build has no NCCL (configure it with "
                                "-DPIPEINFER_CUDA=ON)");
  }
}

}  // namespace
}  // namespace pipeinfer

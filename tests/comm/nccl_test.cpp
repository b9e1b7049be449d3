// NCCL between threads, each with a GPU of its own.
#include "pipeinfer/comm/nccl.h"

#include <gtest/gtest.h>

#include "gpu_ring.h"
#include "pipeinfer/comm/local.h"

namespace pipeinfer {
namespace {

#define NEED_GPUS(n) \
  if (cuda_device_count() < n) GTEST_SKIP() << "needs " << n << " GPUs, sees " << cuda_device_count()

Device gpu(int index) { return {DeviceKind::cuda, index}; }

/// `body(job)` on `size` threads; rank r owns GPU r.
void on_gpus(int size, const std::function<void(Job&)>& body) {
  LocalWorld world(size);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < size; rank++) {
    ranks.emplace_back([&, rank] { body(*world.job(rank)); });
  }
  for (auto& thread : ranks) thread.join();
}

TEST(Nccl, CarriesARing) {
  NEED_GPUS(2);
  on_gpus(std::min(cuda_device_count(), 4), [](Job& job) {
    auto transport = make_transport(TransportKind::nccl, gpu(job.rank()), job, 20);
    run_gpu_ring(*transport, job.control(), gpu(job.rank()));
  });
}

TEST(Nccl, AbortEndsAReceiveOnTheDevice) {
  NEED_GPUS(2);
  on_gpus(2, [](Job& job) {
    const Device device = gpu(job.rank());
    auto transport = make_transport(TransportKind::nccl, device, job, 20);
    Link& link = transport->connect(Channel::hidden, 0, 1);
    open_links(*transport);
    if (job.rank() == 1) {
      Stream stream(device);
      DeviceBuffer data(device, 64, "data");
      Event done(device);
      link.recv(data.data(), 64, stream);
      done.record(stream);
      EXPECT_FALSE(wait_until(done, 0.2));
      transport->abort();
      EXPECT_TRUE(wait_until(done, 20));
      try {
        link.recv(data.data(), 64, stream);
        FAIL() << "a receive after the abort";
      } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "the link of channel 0 from rank 0 to rank 1 was aborted");
      }
    }
    barrier(job.control());
  });
}

TEST(Nccl, RefusesTwoRanksOnOneGpu) {
  NEED_GPUS(1);
  on_gpus(2, [](Job& job) {
    auto transport = make_transport(TransportKind::nccl, gpu(0), job, 20);
    transport->connect(Channel::hidden, 0, 1);
    if (job.rank() == 1) {
      try {
        open_links(*transport);
        FAIL() << "two ranks share a GPU";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        EXPECT_EQ(std::string(error.what()).find("ranks 0 and 1 share one GPU ("), 0u) << error.what();
      }
    }
    barrier(job.control());
  });
}

}  // namespace
}  // namespace pipeinfer

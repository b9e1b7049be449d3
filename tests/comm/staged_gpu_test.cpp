// Tensors of GPUs through host memory and MPI: two ranks may share a GPU.
#include "gpu_ring.h"

namespace pipeinfer {
namespace {

TEST(StagedGpu, CarriesARing) {
  if (cuda_device_count() < 1) GTEST_SKIP() << "needs a GPU";
  on_every_rank([](Job& job) {
    const Device device{DeviceKind::cuda, job.local_rank() % cuda_device_count()};
    run_gpu_ring(*make_transport(TransportKind::mpi, device, job), job.control(), device);
  });
}

}  // namespace
}  // namespace pipeinfer

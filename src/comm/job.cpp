#include "pipeinfer/comm/job.h"

#include <cstdlib>

#include "mpi_job.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/comm/launch.h"
#include "pipeinfer/comm/local.h"
#include "pipeinfer/comm/nccl.h"

namespace pipeinfer {

std::unique_ptr<Job> start_job(double timeout_s) {
  const std::optional<Launch> launch = find_launch([](const char* name) { return std::getenv(name); });
  if (!launch || launch->tasks == 1) return LocalWorld(1).job(0);
  if (!launch->has_pmi) check_world(*launch, 1);
  return start_mpi_job(*launch, timeout_s);
}

TransportKind resolve_transport(TransportKind kind, Device device, int n_ranks) {
  if (kind != TransportKind::automatic) return kind;
  return device.is_cuda() && nccl_built() && n_ranks > 1 ? TransportKind::nccl : TransportKind::mpi;
}

std::unique_ptr<Transport> make_transport(TransportKind kind, Device device, Job& job, double timeout_s) {
  return resolve_transport(kind, device, job.size()) == TransportKind::nccl
             ? make_nccl_transport(device, job.control(), timeout_s)
             : job.host_transport(device);
}

}  // namespace pipeinfer

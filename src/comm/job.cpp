#include "pipeinfer/comm/job.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "mpi_job.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/comm/launch.h"
#include "pipeinfer/comm/local.h"
#include "pipeinfer/comm/nccl.h"

namespace pipeinfer {

std::unique_ptr<Job> start_job(double timeout_s) {
  const std::optional<Launch> launch = find_launch([](const char* name) { return std::getenv(name); });
  if (!launch || launch->tasks == 1) return LocalWorld(1).job(0);
  try {
    if (!launch->has_pmi) check_world(*launch, 1);
    return start_mpi_job(*launch, timeout_s);
  } catch (const Error& error) {
    if (launch->rank == 0) throw;
    // Every task sees the same, one says it; the launcher must not take that one down before.
    std::this_thread::sleep_for(std::chrono::seconds(1));
    _exit(static_cast<int>(error.code()));
  }
}

std::unique_ptr<Transport> make_transport(TransportKind kind, Device device, Job& job, double timeout_s) {
  if (kind == TransportKind::automatic) {
    kind = device.is_cuda() && nccl_built() && job.size() > 1 ? TransportKind::nccl : TransportKind::mpi;
  }
  return kind == TransportKind::nccl ? make_nccl_transport(device, job.control(), timeout_s)
                                     : job.host_transport(device);
}

}  // namespace pipeinfer

// A rank's place in the job, and its way in and out of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pipeinfer/comm/control.h"
#include "pipeinfer/comm/transport.h"

namespace pipeinfer {

/// Processes of an MPI job, or one process alone, or threads in tests (local.h). One that is destroyed while its MPI runs
/// (an exception on the way, no finalize) aborts with 1: catch, say what happened, then abort with the right code.
class Job {
 public:
  virtual ~Job() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_rank() const = 0;                         ///< among the ranks of this host, from 0
  virtual int local_size() const = 0;                         ///< ranks of this host
  virtual const std::vector<std::string>& hosts() const = 0;  ///< each rank's host name
  virtual Control& control() = 0;

  /// A Transport through host memory, for tensors of `device`. One at a time; it must not outlive the job.
  virtual std::unique_ptr<Transport> host_transport(Device device) = 0;

  /// Leaves in an orderly way; every rank calls it once, after the last use of Control and Transport. Throws
  /// Error(failed) after `timeout_s`, or if that fails; then abort.
  virtual void finalize(double timeout_s) = 0;

  /// Takes all ranks down and ends this process with `exit_code`, within some seconds whatever hangs. Logs and
  /// results are flushed before.
  [[noreturn]] virtual void abort(int exit_code) noexcept = 0;
};

/// The job that this process belongs to: over MPI when a launcher started it (see launch.h), otherwise one rank, with
/// no use of MPI at all. `timeout_s` counts from the start of the process: when MPI_Init hangs, one sentence on stderr
/// and exit with 1. Throws Error(usage), on every task, when MPI sees another number of ranks than
/// the launcher started.
std::unique_ptr<Job> start_job(double timeout_s);

enum class TransportKind : uint8_t { automatic, nccl, mpi };

/// What `automatic` stands for: NCCL between GPUs where the build has it, otherwise through the host.
TransportKind resolve_transport(TransportKind kind, Device device, int n_ranks);

/// The Transport that was asked for (see resolve_transport).
/// Throws Error(usage) for NCCL on a CPU, or in a build without it. `timeout_s`: see make_nccl_transport.
std::unique_ptr<Transport> make_transport(TransportKind kind, Device device, Job& job, double timeout_s = 60);

}  // namespace pipeinfer

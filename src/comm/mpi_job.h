// The job over MPI: Control and the host-staged Transport, both on one MpiThread.
#pragma once

#include "mpi_thread.h"
#include "pipeinfer/comm/job.h"
#include "pipeinfer/comm/launch.h"

namespace pipeinfer {

/// See start_job.
std::unique_ptr<Job> start_mpi_job(const Launch& launch, double timeout_s);

/// What has arrived for the links of this rank, and who waits for it. Thread-safe.
class TensorInbox {
 public:
  void push(Parcel parcel);
  /// Waits for the next parcel of a link. Throws Error(failed) when MPI fails or the wait is aborted.
  StagingPtr pop(int from, int to, int channel);

  /// Whether waits end at once, with an error.
  void set_aborted(bool aborted);
  void fail(const std::string& message);
  /// Throws Error(failed) once MPI has failed.
  void check() const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<int, int>, std::deque<StagingPtr>> arrived_;  // by sender and channel
  std::string failure_;
  bool aborted_ = false;
};

/// Tensors go through pinned host memory; `mpi` and `inbox` outlive it.
std::unique_ptr<Transport> make_mpi_transport(MpiThread& mpi, TensorInbox& inbox, Device device);

}  // namespace pipeinfer

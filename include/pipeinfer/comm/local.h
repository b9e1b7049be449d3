// Ranks as threads of one process: for tests, and for one rank alone.
#pragma once

#include <memory>

#include "pipeinfer/comm/job.h"

namespace pipeinfer {

/// What may go wrong or late between the threads.
struct LocalFaults {
  double max_delay_s =
      0;  ///< every message and tensor is late by a random time up to this; order a pair is kept
  uint64_t seed = 0;
};

/// `size` ranks. Transports and jobs keep what they share alive; a Control ends with the world.
class LocalWorld {
 public:
  explicit LocalWorld(int size, LocalFaults faults = {});

  int size() const;
  Control& control(int rank);

  /// CPU tensors only. A send never waits (as over MPI): what bounds the queues is the pipeline's run-ahead.
  std::unique_ptr<Transport> transport(int rank);

  /// The rank as a Job; finalize does nothing and abort ends the process.
  std::unique_ptr<Job> job(int rank);

  /// From now on nothing that `rank` says reaches anyone, as if its process had died.
  void silence(int rank);

  struct Shared;

 private:
  std::shared_ptr<Shared> shared_;
};

}  // namespace pipeinfer

// The one thread of a rank that makes MPI calls, from MPI_Init_thread to MPI_Finalize. Others hand it parcels, and it
// hands over what arrives. It never blocks in MPI but at the start and the end, where its callers keep deadlines.
#pragma once

#include <mpi.h>
#include <sys/types.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "pipeinfer/comm/mailbox.h"
#include "staging.h"

namespace pipeinfer {

/// Control and Transport have a communicator each, so that neither waits behind the other.
enum class Plane : uint8_t { control = 0, tensors = 1 };

/// A message on its way: to `peer`, or from it.
struct Parcel {
  Plane plane = Plane::control;
  int peer = 0;
  int tag = 0;
  StagingPtr buffer;
  std::shared_ptr<std::atomic<int>>
      unsent;  ///< of a sent parcel: lowered once the peer's MPI takes it; may be null
};

class MpiThread {
 public:
  struct Place {
    int rank = 0, size = 1, local_rank = 0, local_size = 1;
    std::vector<std::string> hosts;
    std::vector<pid_t> pids;  ///< by rank; 0 where this rank cannot see the process
  };
  /// Called on the MPI thread.
  struct Handlers {
    std::function<void(Parcel)> arrived;  ///< those of one peer and plane (and tag, of tensors) in order
    /// A tensor could not be copied to the host (an error of the device): it and what follows it is not sent.
    std::function<void(const std::string&)> tensor_failed;
    std::function<void(const std::string&)> failed;  ///< MPI reported an error: nothing moves from now on
  };

  /// Starts MPI; the handlers may be called from then on. When that fails, or takes longer than `timeout_s`: one
  /// sentence on stderr, and the process ends with 1.
  MpiThread(double timeout_s, Handlers handlers);
  /// Aborts the job unless it was finalized.
  ~MpiThread();

  const Place& place() const { return place_; }
  LifeTable& lives() const { return *lives_; }

  /// Sends a parcel once its buffer's event is ready. Those of one peer and plane (and tag, of tensors) keep their order.
  void post(Parcel parcel);
  /// What this rank's signs of life say from now on.
  void show_life(Phase phase, uint64_t progress);
  /// Tensors are received into this pool's memory from now on.
  void receive_into(std::shared_ptr<StagingPool> pool);

  /// Waits until every rank has called this, and all that was posted anywhere has arrived, then ends MPI. Throws
  /// Error(failed), also after `timeout_s`.
  void finalize(double timeout_s);
  [[noreturn]] void abort(int exit_code) noexcept;

 private:
  using Queue = std::tuple<Plane, int, int>;  // plane, peer, tag: what keeps its order
  struct Arrival {
    Parcel parcel;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  enum class Leaving { no, wait_for_all, drain, wait_for_all_drained, done };

  void main();
  void start();
  void find_peers();
  void loop();
  void take_orders();
  bool send_waiting();
  bool may_leave(Parcel& parcel);
  StagingPtr room_for(Plane plane, size_t bytes);
  bool finish_sent();
  bool accept_arrivals();
  bool deliver_arrivals();
  void show_life_to_peers();
  void leave();
  std::string missing(double waited_s) const;
  void rest(bool busy);
  void check(int code, const char* call, int peer) const;
  static Queue queue_of(const Parcel& parcel);
  MPI_Comm comm(Plane plane) const { return comms_[static_cast<size_t>(plane)]; }

  const double timeout_s_;
  const Handlers handlers_;
  Place place_;
  std::unique_ptr<LifeTable> lives_;
  std::atomic<Phase> phase_{Phase::starting};
  std::atomic<uint64_t> progress_{0};

  // Orders to the MPI thread, and its state.
  std::mutex mutex_;
  std::condition_variable ordered_, changed_;
  bool new_orders_ = false, leave_ordered_ = false, started_ = false, ended_ = false;
  std::optional<int> abort_ordered_;
  std::vector<Parcel> posted_;
  std::shared_ptr<StagingPool> new_tensor_pool_;
  std::string failure_;

  // Of the MPI thread alone.
  std::array<MPI_Comm, 2> comms_{MPI_COMM_NULL, MPI_COMM_NULL};
  std::shared_ptr<StagingPool> control_pool_, tensor_pool_;
  std::deque<Parcel> waiting_;  // for their buffers' events
  std::vector<Parcel> sent_;    // given to MPI, with their requests
  std::vector<MPI_Request> sent_requests_;
  std::map<Queue, std::deque<Arrival>> arriving_;
  std::vector<std::shared_ptr<std::atomic<int>>> life_unsent_;  // by peer
  double next_life_s_ = 0, last_busy_s_ = 0;
  bool leave_asked_ = false;
  std::atomic<Leaving> leaving_{Leaving::no};
  MPI_Request barrier_ = MPI_REQUEST_NULL;

  std::thread thread_;
};

}  // namespace pipeinfer

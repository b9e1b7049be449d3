// One link over NCCL: a non-blocking communicator of two ranks, and the states on its way to use.
#pragma once

#include <nccl.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <string>

#include "pipeinfer/comm/transport.h"

namespace pipeinfer {

/// Throws Error(failed): "<what> failed: <NCCL's words>".
void check_nccl(ncclResult_t result, const std::string& what, ncclComm_t comm = nullptr);

class NcclLink : public Link {
 public:
  NcclLink(Channel channel, int from, int to, bool sends, double timeout_s);

  void send(const void* data, size_t bytes, Stream& stream) override;
  void recv(void* data, size_t bytes, Stream& stream) override;

  const std::string& name() const { return name_; }  ///< "the link of channel 0 from rank 1 to rank 2"
  bool sends() const { return sends_; }
  bool begun() const { return comm_ != nullptr; }
  bool ready() const { return ready_; }

  /// Starts to connect. The device of the calling thread is the communicator's.
  void begin(const ncclUniqueId& id);
  /// Whether NCCL is at rest: what was started last is done, or is on its stream. Throws Error(failed).
  bool settled();
  /// Sends, or receives, a few bytes, so that the first real tensor finds everything set up. Call until ready.
  void warm_up(void* bytes, Stream& stream);
  /// Throws the error that happened since, if any; skips a link that another thread uses.
  void check();

  /// Stops waits of other threads; abort_communicator follows.
  void stop() { stopped_ = true; }
  /// Ends everything in flight; may hang where the driver does.
  void abort_communicator();
  /// Starts to end in an orderly way; settled() says when that is done, then destroy. That may hang.
  void finalize();
  void destroy();

 private:
  void start(void* data, size_t bytes, Stream& stream);
  void run(void* data, size_t bytes, Stream& stream);

  const std::string name_;
  const bool sends_;
  const double timeout_s_;
  std::timed_mutex mutex_;  // one thread at a time may use a communicator
  ncclComm_t comm_ = nullptr;
  std::atomic<bool> stopped_{false};
  std::optional<Event> warmed_;
  bool warming_ = false, ready_ = false;
};

}  // namespace pipeinfer

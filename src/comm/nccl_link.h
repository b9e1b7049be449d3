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

  bool begun() const { return begun_; }
  bool ready() const { return ready_; }

  // Opening and closing; all throw Error(failed), also once the link was stopped.

  /// Starts to connect. The device of the calling thread is the communicator's.
  void begin(const ncclUniqueId& id);
  /// Whether what was begun, or finalized, is done.
  bool done();
  /// Sends, or receives, a few bytes, so that the first real tensor finds everything set up. Call until ready.
  void warm_up(void* bytes, Stream& stream);
  /// Starts to end in an orderly way; destroy once done. That may hang.
  void finalize();
  void destroy();

  /// Throws the error that happened since, if any; skips a link that another thread uses.
  void check();

  /// Stops waits of other threads; abort follows.
  void stop() { stopped_ = true; }
  /// Ends everything in flight; may hang where the driver does.
  void abort();

 private:
  // With the lock held:
  void require_use() const;
  bool settled();
  void start(void* data, size_t bytes, Stream& stream);

  void run(void* data, size_t bytes, Stream& stream);

  const std::string name_;
  const bool sends_;
  const double timeout_s_;
  std::timed_mutex mutex_;  // one thread at a time may use a communicator
  ncclComm_t comm_ = nullptr;
  std::atomic<bool> stopped_{false};
  std::optional<Event> warmed_;
  bool begun_ = false, warming_ = false, ready_ = false;
};

}  // namespace pipeinfer

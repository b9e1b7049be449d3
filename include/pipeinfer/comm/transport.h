// Tensors between ranks, ordered by streams. NCCL on GPUs, host-staged MPI on CPUs (and on GPUs that ask for it),
// threads in tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "pipeinfer/device/device.h"

namespace pipeinfer {

/// What a link carries; each has a communicator of its own, so that tokens never queue behind activations.
enum class Channel : uint8_t { hidden = 0, tokens = 1, kv = 2 };

/// One direction between two ranks. Both ends issue the same operations, same bytes, in the same (step) order.
class Link {
 public:
  virtual ~Link() = default;
  /// Sender: enqueues sending `bytes` at `data` after what is on `stream`. `data` may be reused by work enqueued on
  /// `stream` after this call.
  virtual void send(const void* data, size_t bytes, Stream& stream) = 0;
  /// Receiver: work enqueued on `stream` after this call sees the bytes. On host-staged transports this call itself
  /// waits; it ends early, throwing Error(failed), when the transport is aborted.
  virtual void recv(void* data, size_t bytes, Stream& stream) = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;

  /// Starts opening the link from rank `from` to rank `to` (this rank is one of them). The order of calls may differ
  /// between ranks. The link may be used once `connected()`.
  virtual Link& connect(Channel channel, int from, int to) = 0;

  /// Makes progress with opening; true once all links are open. Throws Error(failed).
  virtual bool connected() = 0;

  /// Throws Error(failed) if a link has failed asynchronously (ncclCommGetAsyncError).
  virtual void check() = 0;

  /// Makes every operation in flight end, on any thread: for use after a fault.
  virtual void abort() noexcept = 0;

  /// Closes all links in an orderly way, after the streams are done; every rank calls it. At most `timeout_s`.
  virtual void close(double timeout_s) = 0;
};

}  // namespace pipeinfer

#include "nccl_link.h"

#include <sched.h>

#include <chrono>
#include <utility>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {
constexpr size_t kWarmUpBytes = 16;
}

void check_nccl(ncclResult_t result, const std::string& what, ncclComm_t comm) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  const char* detail = ncclGetLastError(comm);
  runtime_failure(
      cat(what, " failed: ", ncclGetErrorString(result), detail && *detail ? cat(" (", detail, ")") : ""));
}

NcclLink::NcclLink(Channel channel, int from, int to, bool sends, double timeout_s)
    : name_(cat("the link of channel ", static_cast<int>(channel), " from rank ", from, " to rank ", to)),
      sends_(sends),
      timeout_s_(timeout_s) {}

void NcclLink::send(const void* data, size_t bytes, Stream& stream) {
  PI_CHECK(sends_ && ready_, name_);
  run(const_cast<void*>(data), bytes, stream);
}

void NcclLink::recv(void* data, size_t bytes, Stream& stream) {
  PI_CHECK(!sends_ && ready_, name_);
  run(data, bytes, stream);
}

void NcclLink::require_use() const {
  if (stopped_ || !comm_) runtime_failure(cat(name_, " was aborted"));
}

bool NcclLink::settled() {
  require_use();
  ncclResult_t state = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(comm_, &state), name_, comm_);
  check_nccl(state, name_, comm_);
  return state == ncclSuccess;
}

void NcclLink::start(void* data, size_t bytes, Stream& stream) {
  require_use();
  const auto cuda_stream = static_cast<cudaStream_t>(stream.native());
  const ncclResult_t result = sends_ ? ncclSend(data, bytes, ncclInt8, 1, comm_, cuda_stream)
                                     : ncclRecv(data, bytes, ncclInt8, 0, comm_, cuda_stream);
  check_nccl(result, name_, comm_);
}

// A non-blocking communicator launches from a thread of NCCL's own: the operation is on the stream, and later work
// may follow it there, only once NCCL is at rest.
void NcclLink::run(void* data, size_t bytes, Stream& stream) {
  std::lock_guard lock(mutex_);
  start(data, bytes, stream);
  for (const double begin = now_s(); !settled(); sched_yield()) {
    if (now_s() - begin > timeout_s_) runtime_failure(cat(name_, " took nothing for ", timeout_s_, " s"));
  }
}

void NcclLink::begin(const ncclUniqueId& id) {
  std::lock_guard lock(mutex_);
  if (stopped_) runtime_failure(cat(name_, " was aborted"));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  begun_ = true;
  check_nccl(ncclCommInitRankConfig(&comm_, 2, id, sends_ ? 0 : 1, &config), cat("opening ", name_), comm_);
}

bool NcclLink::done() {
  std::lock_guard lock(mutex_);
  return settled();
}

void NcclLink::warm_up(void* bytes, Stream& stream) {
  std::lock_guard lock(mutex_);
  if (!warming_) {
    start(bytes, kWarmUpBytes, stream);
    warming_ = true;
  }
  if (!settled()) return;
  if (!warmed_) {
    warmed_.emplace(stream.device());
    warmed_->record(stream);
  }
  ready_ = warmed_->ready();
}

void NcclLink::finalize() {
  std::lock_guard lock(mutex_);
  require_use();
  check_nccl(ncclCommFinalize(comm_), cat("closing ", name_), comm_);
}

void NcclLink::destroy() {
  std::lock_guard lock(mutex_);
  if (ncclComm_t comm = std::exchange(comm_, nullptr)) ncclCommDestroy(comm);
}

void NcclLink::check() {
  std::unique_lock lock(mutex_, std::try_to_lock);
  if (lock) settled();
}

void NcclLink::abort() {
  // A thread in one of the functions above leaves its loop when stopped; one that hangs inside NCCL only leaves by the
  // abort itself.
  std::unique_lock lock(mutex_, std::chrono::seconds(2));
  if (ncclComm_t comm = std::exchange(comm_, nullptr)) ncclCommAbort(comm);
}

}  // namespace pipeinfer

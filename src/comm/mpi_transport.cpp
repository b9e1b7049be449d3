#include <cstring>

#include "mpi_job.h"
#include "pipeinfer/base/check.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

// A tensor is sent as full chunks and a last one that is not full, maybe empty: MPI's counts end at 2 GiB, and the
// copies from and to a GPU overlap with the sending.
constexpr size_t kChunk = size_t{32} << 20;

class MpiLink : public Link {
 public:
  MpiLink(MpiThread& mpi, TensorInbox& inbox, std::shared_ptr<StagingPool> pool,
          std::shared_ptr<std::atomic<int>> unsent, Channel channel, int from, int to)
      : mpi_(mpi),
        inbox_(inbox),
        pool_(std::move(pool)),
        unsent_(std::move(unsent)),
        channel_(static_cast<int>(channel)),
        from_(from),
        to_(to) {}

  void send(const void* data, size_t bytes, Stream& stream) override {
    PI_CHECK(mpi_.place().rank == from_, "rank ", mpi_.place().rank, " sends on the link from ", from_,
             " to ", to_);
    for (size_t at = 0;; at += kChunk) {
      const size_t size = std::min(kChunk, bytes - at);
      StagingPtr buffer = pool_->take(size);
      copy_async(buffer->data(), static_cast<const std::byte*>(data) + at, size, stream);
      buffer->event.record(stream);
      ++*unsent_;
      mpi_.post({Plane::tensors, to_, channel_, std::move(buffer), unsent_});
      if (size < kChunk) return;
    }
  }

  void recv(void* data, size_t bytes, Stream& stream) override {
    PI_CHECK(mpi_.place().rank == to_, "rank ", mpi_.place().rank, " receives on the link from ", from_,
             " to ", to_);
    for (size_t at = 0;; at += kChunk) {
      StagingPtr buffer = inbox_.pop(from_, to_, channel_);
      PI_CHECK(buffer->bytes == std::min(kChunk, bytes - at), "rank ", from_, " sent ", at + buffer->bytes,
               " bytes", buffer->bytes == kChunk ? " or more" : "", ", rank ", to_, " expected ", bytes);
      copy_async(static_cast<std::byte*>(data) + at, buffer->data(), buffer->bytes, stream);
      buffer->event.record(stream);  // the pool gives it out again only then
      if (buffer->bytes < kChunk) return;
    }
  }

 private:
  MpiThread& mpi_;
  TensorInbox& inbox_;
  const std::shared_ptr<StagingPool> pool_;
  const std::shared_ptr<std::atomic<int>> unsent_;
  const int channel_, from_, to_;
};

class MpiTransport : public Transport {
 public:
  MpiTransport(MpiThread& mpi, TensorInbox& inbox, Device device)
      : mpi_(mpi), inbox_(inbox), pool_(std::make_shared<StagingPool>(device)) {
    inbox_.set_aborted(false);
    mpi_.receive_into(pool_);
  }

  Link& connect(Channel channel, int from, int to) override {
    const int rank = mpi_.place().rank;
    PI_CHECK(from != to && (rank == from || rank == to), "rank ", rank, " has no link from ", from, " to ",
             to);
    links_.push_back(std::make_unique<MpiLink>(mpi_, inbox_, pool_, unsent_, channel, from, to));
    return *links_.back();
  }

  bool connected() override {
    return true;
  }  // MPI connects by itself, and what comes early waits in the inbox

  void check() override { inbox_.check(); }

  void abort() noexcept override { inbox_.set_aborted(true); }

  void close(double timeout_s) override {
    for (const double start = now_s(); *unsent_ > 0;) {
      inbox_.check();
      if (now_s() - start > timeout_s) {
        runtime_failure(cat("rank ", mpi_.place().rank, " could not close its links within ", timeout_s,
                            " s: ", *unsent_, " messages were not taken"));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

 private:
  MpiThread& mpi_;
  TensorInbox& inbox_;
  const std::shared_ptr<StagingPool> pool_;
  const std::shared_ptr<std::atomic<int>> unsent_ = std::make_shared<std::atomic<int>>(0);
  std::vector<std::unique_ptr<MpiLink>> links_;
};

}  // namespace

void TensorInbox::push(Parcel parcel) {
  std::lock_guard lock(mutex_);
  arrived_[{parcel.peer, parcel.tag}].push_back(std::move(parcel.buffer));
  changed_.notify_all();
}

StagingPtr TensorInbox::pop(int from, int to, int channel) {
  std::unique_lock lock(mutex_);
  auto& queue = arrived_[{from, channel}];
  changed_.wait(lock, [&] { return aborted_ || !failure_.empty() || !queue.empty(); });
  if (!failure_.empty()) runtime_failure(failure_);
  if (aborted_) runtime_failure(cat("receiving from rank ", from, " on rank ", to, " was aborted"));
  StagingPtr buffer = std::move(queue.front());
  queue.pop_front();
  return buffer;
}

void TensorInbox::set_aborted(bool aborted) {
  std::lock_guard lock(mutex_);
  aborted_ = aborted;
  changed_.notify_all();
}

void TensorInbox::fail(const std::string& message) {
  std::lock_guard lock(mutex_);
  failure_ = message;
  changed_.notify_all();
}

void TensorInbox::check() const {
  std::lock_guard lock(mutex_);
  if (!failure_.empty()) runtime_failure(failure_);
}

std::unique_ptr<Transport> make_mpi_transport(MpiThread& mpi, TensorInbox& inbox, Device device) {
  return std::make_unique<MpiTransport>(mpi, inbox, device);
}

}  // namespace pipeinfer

#include "mpi_job.h"

#include <signal.h>

#include <cerrno>
#include <climits>
#include <cstring>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

class MpiControl : public Control {
 public:
  MpiControl(MpiThread& mpi, Mailbox& inbox) : mpi_(mpi), inbox_(inbox) {}

  int rank() const override { return mpi_.place().rank; }
  int size() const override { return mpi_.place().size; }

  void send(int to, Tag tag, std::span<const std::byte> bytes) override {
    PI_CHECK(to >= 0 && to < size() && bytes.size() <= INT_MAX, "to rank ", to, ", ", bytes.size(), " bytes");
    if (to == rank()) {
      inbox_.push({to, tag, {bytes.begin(), bytes.end()}});
      return;
    }
    StagingPtr buffer = pool_->take(bytes.size());
    std::copy(bytes.begin(), bytes.end(), buffer->data());
    ++*unsent_;
    mpi_.post({Plane::control, to, static_cast<int>(tag), std::move(buffer), unsent_});
  }

  std::optional<Message> poll() override { return inbox_.poll(); }
  std::optional<Message> poll(Tag tag) override { return inbox_.poll(tag); }
  void wait(double timeout_s) override { inbox_.wait(timeout_s); }
  void wake() override { inbox_.wake(); }
  bool flushed() const override { return *unsent_ == 0; }
  void show_life(Phase phase, uint64_t progress) override { mpi_.show_life(phase, progress); }
  PeerLife life(int peer) const override {
    PeerLife life = mpi_.lives().at(peer);
    const pid_t pid = mpi_.place().pids[peer];
    life.gone = pid != 0 && kill(pid, 0) != 0 && errno == ESRCH;
    return life;
  }

 private:
  MpiThread& mpi_;
  Mailbox& inbox_;
  const std::shared_ptr<StagingPool> pool_ = std::make_shared<StagingPool>(Device{});
  const std::shared_ptr<std::atomic<int>> unsent_ = std::make_shared<std::atomic<int>>(0);
};

class MpiJob : public Job {
 public:
  explicit MpiJob(double timeout_s)
      : mpi_(timeout_s, {.arrived = [this](Parcel parcel) { arrived(std::move(parcel)); },
                         .tensor_failed = [this](const std::string& message) { tensors_.fail(message); },
                         .failed = [this](const std::string& message) { failed(message); }}),
        control_(mpi_, messages_) {}

  int rank() const override { return mpi_.place().rank; }
  int size() const override { return mpi_.place().size; }
  int local_rank() const override { return mpi_.place().local_rank; }
  int local_size() const override { return mpi_.place().local_size; }
  const std::vector<std::string>& hosts() const override { return mpi_.place().hosts; }
  Control& control() override { return control_; }
  std::unique_ptr<Transport> host_transport(Device device) override {
    return make_mpi_transport(mpi_, tensors_, device);
  }
  void finalize(double timeout_s) override { mpi_.finalize(timeout_s); }
  [[noreturn]] void abort(int exit_code) noexcept override { mpi_.abort(exit_code); }

 private:
  void arrived(Parcel parcel) {
    if (parcel.plane == Plane::tensors) {
      tensors_.push(std::move(parcel));
      return;
    }
    const std::byte* first = parcel.buffer->data();
    messages_.push({parcel.peer, static_cast<Tag>(parcel.tag), {first, first + parcel.buffer->bytes}});
  }

  void failed(const std::string& message) {
    messages_.fail(message);
    tensors_.fail(message);
  }

  Mailbox messages_;
  TensorInbox tensors_;
  MpiThread mpi_;  // after what it delivers into
  MpiControl control_;
};

}  // namespace

std::unique_ptr<Job> start_mpi_job(const Launch& launch, double timeout_s) {
  auto job = std::make_unique<MpiJob>(timeout_s);
  try {
    check_world(launch, job->size());
  } catch (const Error&) {
    job->finalize(timeout_s);
    throw;
  }
  return job;
}

}  // namespace pipeinfer

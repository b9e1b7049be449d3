#include <array>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

#include "nccl_link.h"
#include "pipeinfer/base/check.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/comm/nccl.h"

namespace pipeinfer {
namespace {

constexpr double kAbortS = 5;

/// What the sender of a link tells its receiver before they connect.
struct Invitation {
  int32_t channel;
  std::array<char, 320> gpu;  ///< gpu_identity, ends with 0
  ncclUniqueId id;
};

/// Runs `work` on another thread, and leaves it there when it has not ended after `timeout_s`: NCCL's and the
/// driver's own waits at teardown have no deadline. False if it was left.
bool run_within(double timeout_s, std::function<void()> work) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  auto shared = std::make_shared<Shared>();
  std::thread([shared, work = std::move(work)] {
    work();
    std::lock_guard lock(shared->mutex);
    shared->done = true;
    shared->changed.notify_all();
  }).detach();
  std::unique_lock lock(shared->mutex);
  return shared->changed.wait_for(lock, std::chrono::duration<double>(timeout_s),
                                  [&] { return shared->done; });
}

class NcclTransport : public Transport {
 public:
  NcclTransport(Device device, Control& control, double timeout_s)
      : device_(device),
        control_(control),
        timeout_s_(timeout_s),
        gpu_(gpu_identity(device)),
        warm_stream_(device),
        warm_bytes_(device, 256, "NCCL's first messages") {}

  ~NcclTransport() override { abort(); }

  Link& connect(Channel channel, int from, int to) override {
    const int rank = control_.rank();
    PI_CHECK(from != to && (rank == from || rank == to), "rank ", rank, " has no link from ", from, " to ",
             to);
    use_device(device_);
    auto link = std::make_shared<NcclLink>(channel, from, to, rank == from, timeout_s_);
    {
      std::lock_guard lock(mutex_);
      links_[{static_cast<int>(channel), from, to}] = link;
    }
    if (rank == from) invite(*link, channel, to);
    return *link;
  }

  bool connected() override {
    use_device(device_);
    while (auto message = control_.poll(Tag::unique_id)) accept(*message);
    bool all_open = true;
    for (auto& [key, link] : links_) {
      const auto& [channel, from, to] = key;
      const auto invitation = invitations_.find({channel, from});
      if (!link->begun() && invitation != invitations_.end()) link->begin(invitation->second);
      all_open &= link->begun() && link->done();
    }
    if (!all_open) return false;
    // A first operation sets up memory on the GPU, which may wait for kernels that wait for their peers. So there is
    // one at a time, and all ranks go through their links in the same order.
    for (auto& [key, link] : links_) {
      if (!link->ready()) link->warm_up(warm_bytes_.data(), warm_stream_);
      if (!link->ready()) return false;
    }
    return true;
  }

  void check() override {
    for (auto& [key, link] : links_) link->check();
  }

  void abort() noexcept override {
    try {
      std::unique_lock lock(mutex_);
      auto links = links_;
      lock.unlock();
      if (links.empty()) return;
      for (auto& [key, link] : links) link->stop();
      run_within(kAbortS, [links = std::move(links)] {
        for (auto& [key, link] : links) link->abort();
      });
    } catch (...) {
    }
  }

  void close(double timeout_s) override {
    const double start = now_s();
    use_device(device_);
    for (auto& [key, link] : links_) link->finalize();
    for (auto& [key, link] : links_) {
      while (!link->done()) {
        if (now_s() - start > timeout_s) too_late(timeout_s);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
    const bool destroyed = run_within(timeout_s - (now_s() - start), [links = links_] {
      for (auto& [key, link] : links) link->destroy();
    });
    if (!destroyed) too_late(timeout_s);
    std::lock_guard lock(mutex_);
    links_.clear();
  }

 private:
  using Key = std::tuple<int, int, int>;  // channel, from, to

  void invite(NcclLink& link, Channel channel, int to) {
    Invitation invitation{static_cast<int32_t>(channel), {}, {}};
    gpu_.copy(invitation.gpu.data(), invitation.gpu.size() - 1);
    check_nccl(ncclGetUniqueId(&invitation.id), "ncclGetUniqueId");
    control_.send(to, Tag::unique_id, std::as_bytes(std::span(&invitation, 1)));
    link.begin(invitation.id);
  }

  void accept(const Message& message) {
    Invitation invitation;
    PI_CHECK(message.bytes.size() == sizeof invitation, message.bytes.size(), " bytes from rank ",
             message.from);
    std::memcpy(&invitation, message.bytes.data(), sizeof invitation);
    invitation.gpu.back() = 0;
    std::vector<std::string> gpus(control_.size());
    gpus[control_.rank()] = gpu_;
    gpus[message.from] = invitation.gpu.data();
    refuse_shared_gpus(gpus);
    invitations_[{invitation.channel, message.from}] = invitation.id;
  }

  [[noreturn]] void too_late(double timeout_s) const {
    runtime_failure(
        cat("rank ", control_.rank(), " could not close its NCCL links within ", timeout_s, " s"));
  }

  const Device device_;
  Control& control_;
  const double timeout_s_;
  const std::string gpu_;
  Stream warm_stream_;
  DeviceBuffer warm_bytes_;
  std::mutex mutex_;  // of the map: abort comes from another thread
  std::map<Key, std::shared_ptr<NcclLink>> links_;
  std::map<std::pair<int, int>, ncclUniqueId> invitations_;  // by channel and sender
};

}  // namespace

bool nccl_built() { return true; }

std::string nccl_version() {
  int version = 0;
  check_nccl(ncclGetVersion(&version), "ncclGetVersion");
  return cat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

std::unique_ptr<Transport> make_nccl_transport(Device device, Control& control, double timeout_s) {
  if (!device.is_cuda())
    usage_error("transport nccl: the device is a CPU (use --transport mpi, or --device cuda)");
  return std::make_unique<NcclTransport>(device, control, timeout_s);
}

}  // namespace pipeinfer

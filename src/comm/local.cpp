#include "pipeinfer/comm/local.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <tuple>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/comm/mailbox.h"

namespace pipeinfer {
namespace {

/// Runs deliveries late, from a thread of its own, those of one key in the order they came.
class DelayLine {
 public:
  using Key = std::tuple<int, int, int>;

  DelayLine(double max_delay_s, uint64_t seed)
      : random_(seed), delay_(0, max_delay_s), thread_([this] { run(); }) {}

  ~DelayLine() {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void add(Key key, std::function<void()> deliver) {
    std::lock_guard lock(mutex_);
    double& due = last_due_[key];
    due = std::max(due, now_s() + delay_(random_));
    waiting_.emplace(due, std::move(deliver));  // equal keys of a multimap keep their order
    changed_.notify_all();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (!ending_) {
      if (waiting_.empty()) {
        changed_.wait(lock);
      } else if (const double early = waiting_.begin()->first - now_s(); early > 0) {
        changed_.wait_for(lock, std::chrono::duration<double>(early));
      } else {
        auto deliver = std::move(waiting_.begin()->second);
        waiting_.erase(waiting_.begin());
        deliver();  // under the lock: deliveries take only the receiver's lock, and never call back
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::mt19937_64 random_;
  std::uniform_real_distribution<double> delay_;
  std::map<Key, double> last_due_;
  std::multimap<double, std::function<void()>> waiting_;
  bool ending_ = false;
  std::thread thread_;
};

/// The tensors on their way over one link, oldest first.
struct Pipe {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::vector<std::byte>> tensors;
  bool sender_open = false, receiver_open = false, aborted = false;
};

using PipeKey = std::tuple<Channel, int, int>;  // channel, from, to

}  // namespace

struct LocalWorld::Shared {
  explicit Shared(int size)
      : life(size, std::numeric_limits<double>::infinity()), silent_since(size), inboxes(size) {}

  /// Calls `deliver`, now or late, unless the sender is silent.
  void deliver(int from, DelayLine::Key key, std::function<void()> deliver) {
    if (silent_since[from] > 0) return;
    delays ? delays->add(key, std::move(deliver)) : deliver();
  }

  std::shared_ptr<Pipe> pipe(PipeKey key) {
    std::lock_guard lock(mutex);
    auto& pipe = pipes[key];
    if (!pipe) pipe = std::make_shared<Pipe>();
    return pipe;
  }

  LifeTable life;
  std::vector<std::atomic<double>> silent_since;  // 0: not silent
  std::vector<Mailbox> inboxes;
  std::vector<std::unique_ptr<Control>> controls;
  std::mutex mutex;
  std::map<PipeKey, std::shared_ptr<Pipe>> pipes;
  std::unique_ptr<DelayLine> delays;  // last: its thread delivers into the others
};

namespace {

class LocalControl : public Control {
 public:
  LocalControl(LocalWorld::Shared& shared, int rank) : shared_(shared), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(shared_.inboxes.size()); }

  void send(int to, Tag tag, std::span<const std::byte> bytes) override {
    PI_CHECK(to >= 0 && to < size(), "no rank ", to);
    Message message{rank_, tag, {bytes.begin(), bytes.end()}};
    shared_.deliver(rank_, {-1, rank_, to},
                    [&inbox = shared_.inboxes[to], message = std::move(message)]() mutable {
                      inbox.push(std::move(message));
                    });
  }

  std::optional<Message> poll() override { return inbox().poll(); }
  std::optional<Message> poll(Tag tag) override { return inbox().poll(tag); }
  void wait(double timeout_s) override { inbox().wait(timeout_s); }
  void wake() override { inbox().wake(); }
  bool flushed() const override { return true; }

  void show_life(Phase phase, uint64_t progress) override {
    if (shared_.silent_since[rank_] == 0) shared_.life.said(rank_, phase, progress);
  }

  PeerLife life(int peer) const override {
    PeerLife life = shared_.life.at(peer);
    const double since = shared_.silent_since[peer];
    life.silent_s = since > 0 ? now_s() - since : 0;  // a thread needs no words to be seen alive
    return life;
  }

 private:
  Mailbox& inbox() { return shared_.inboxes[rank_]; }

  LocalWorld::Shared& shared_;
  const int rank_;
};

class LocalLink : public Link {
 public:
  LocalLink(std::shared_ptr<LocalWorld::Shared> shared, std::shared_ptr<Pipe> pipe, PipeKey key, bool sender)
      : shared_(std::move(shared)), pipe_(std::move(pipe)), key_(key), sender_(sender) {}

  void send(const void* data, size_t bytes, Stream& stream) override {
    PI_CHECK(sender_ && !stream.device().is_cuda(), "links between threads carry CPU tensors, one way");
    auto [channel, from, to] = key_;
    auto* first = static_cast<const std::byte*>(data);
    shared_->deliver(from, {static_cast<int>(channel), from, to},
                     [pipe = pipe_, tensor = std::vector<std::byte>(first, first + bytes)]() mutable {
                       std::lock_guard lock(pipe->mutex);
                       pipe->tensors.push_back(std::move(tensor));
                       pipe->changed.notify_all();
                     });
  }

  void recv(void* data, size_t bytes, Stream& stream) override {
    PI_CHECK(!sender_ && !stream.device().is_cuda(), "links between threads carry CPU tensors, one way");
    std::unique_lock lock(pipe_->mutex);
    pipe_->changed.wait(lock, [&] { return pipe_->aborted || !pipe_->tensors.empty(); });
    auto [channel, from, to] = key_;
    if (pipe_->aborted) runtime_failure(cat("receiving from rank ", from, " on rank ", to, " was aborted"));
    const std::vector<std::byte> tensor = std::move(pipe_->tensors.front());
    pipe_->tensors.pop_front();
    PI_CHECK(tensor.size() == bytes, "rank ", from, " sent ", tensor.size(), " bytes, rank ", to,
             " expected ", bytes);
    std::copy(tensor.begin(), tensor.end(), static_cast<std::byte*>(data));
  }

  bool open() const {
    std::lock_guard lock(pipe_->mutex);
    return pipe_->sender_open && pipe_->receiver_open;
  }

  void abort() {
    if (sender_) return;
    std::lock_guard lock(pipe_->mutex);
    pipe_->aborted = true;
    pipe_->changed.notify_all();
  }

 private:
  const std::shared_ptr<LocalWorld::Shared> shared_;
  std::shared_ptr<Pipe> pipe_;
  const PipeKey key_;
  const bool sender_;
};

class LocalTransport : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalWorld::Shared> shared, int rank)
      : shared_(std::move(shared)), rank_(rank) {}

  Link& connect(Channel channel, int from, int to) override {
    PI_CHECK(from != to && (rank_ == from || rank_ == to), "rank ", rank_, " has no link from ", from, " to ",
             to);
    auto pipe = shared_->pipe({channel, from, to});
    {
      std::lock_guard lock(pipe->mutex);
      (rank_ == from ? pipe->sender_open : pipe->receiver_open) = true;
    }
    std::lock_guard lock(mutex_);
    auto link = std::make_unique<LocalLink>(shared_, pipe, PipeKey{channel, from, to}, rank_ == from);
    return *links_.emplace_back(std::move(link));
  }

  bool connected() override {
    std::lock_guard lock(mutex_);
    return std::all_of(links_.begin(), links_.end(), [](auto& link) { return link->open(); });
  }

  void check() override {}

  void abort() noexcept override {
    std::lock_guard lock(mutex_);
    for (auto& link : links_) link->abort();
  }

  void close(double) override {}

 private:
  const std::shared_ptr<LocalWorld::Shared> shared_;
  const int rank_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<LocalLink>> links_;
};

class LocalJob : public Job {
 public:
  LocalJob(std::shared_ptr<LocalWorld::Shared> shared, int rank) : shared_(std::move(shared)), rank_(rank) {
    char name[256] = {};
    hosts_.assign(size(), gethostname(name, sizeof name - 1) == 0 ? name : "localhost");
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(shared_->controls.size()); }
  int local_rank() const override { return rank_; }
  int local_size() const override { return size(); }
  const std::vector<std::string>& hosts() const override { return hosts_; }
  Control& control() override { return *shared_->controls[rank_]; }
  std::unique_ptr<Transport> host_transport(Device) override {
    return std::make_unique<LocalTransport>(shared_, rank_);
  }
  void finalize(double) override {}
  [[noreturn]] void abort(int exit_code) noexcept override { _exit(exit_code); }

 private:
  const std::shared_ptr<LocalWorld::Shared> shared_;
  const int rank_;
  std::vector<std::string> hosts_;
};

}  // namespace

LocalWorld::LocalWorld(int size, LocalFaults faults) : shared_(std::make_shared<Shared>(size)) {
  for (int rank = 0; rank < size; rank++) {
    shared_->controls.push_back(std::make_unique<LocalControl>(*shared_, rank));
  }
  if (faults.max_delay_s > 0) shared_->delays = std::make_unique<DelayLine>(faults.max_delay_s, faults.seed);
}

int LocalWorld::size() const { return static_cast<int>(shared_->controls.size()); }

Control& LocalWorld::control(int rank) { return *shared_->controls.at(rank); }

std::unique_ptr<Transport> LocalWorld::transport(int rank) {
  return std::make_unique<LocalTransport>(shared_, rank);
}

std::unique_ptr<Job> LocalWorld::job(int rank) { return std::make_unique<LocalJob>(shared_, rank); }

void LocalWorld::silence(int rank) { shared_->silent_since.at(rank) = now_s(); }

}  // namespace pipeinfer

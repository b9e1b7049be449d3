// What the MPI thread does between its start and its end: send, receive, show life, rest.
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <utility>

#include "mpi_thread.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

constexpr int kLifeTag = static_cast<int>(Tag::life);
constexpr size_t kLifeBytes = 9;  // progress (8), phase (1)

}  // namespace

void MpiThread::loop() {
  prctl(PR_SET_TIMERSLACK, 1000);  // nanoseconds: rest() sleeps for as little as 20 us
  last_busy_s_ = now_s();
  while (leaving_ != Leaving::done) {
    take_orders();
    bool busy = send_waiting();
    busy |= finish_sent();
    busy |= accept_arrivals();
    busy |= deliver_arrivals();
    show_life_to_peers();
    leave();
    rest(busy);
  }
}

void MpiThread::take_orders() {
  std::unique_lock lock(mutex_);
  new_orders_ = false;
  if (abort_ordered_) {
    lock.unlock();
    MPI_Abort(MPI_COMM_WORLD, *abort_ordered_);
  }
  leave_asked_ = leave_ordered_;
  std::move(posted_.begin(), posted_.end(), std::back_inserter(waiting_));
  posted_.clear();
  if (new_tensor_pool_) {
    tensor_pool_ = std::exchange(new_tensor_pool_, nullptr);
    use_device(tensor_pool_->device());
  }
}

MpiThread::Queue MpiThread::queue_of(const Parcel& parcel) {
  // Signs of life pass a large message; other control messages keep the order of their sender, whatever their tags.
  const bool own_queue = parcel.plane == Plane::tensors || parcel.tag == kLifeTag;
  return {parcel.plane, parcel.peer, own_queue ? parcel.tag : 0};
}

bool MpiThread::send_waiting() {
  std::set<Queue> blocked;
  std::deque<Parcel> still_waiting;
  const size_t before = waiting_.size();
  for (Parcel& parcel : waiting_) {
    if (blocked.contains(queue_of(parcel)) || !may_leave(parcel)) {
      blocked.insert(queue_of(parcel));
      still_waiting.push_back(std::move(parcel));
      continue;
    }
    // Synchronous: complete means that the peer's thread has matched it. So nothing is under way when MPI ends, and a
    // peer that hangs does not collect signs of life.
    MPI_Request request;
    check(MPI_Issend(parcel.buffer->data(), static_cast<int>(parcel.buffer->bytes), MPI_BYTE, parcel.peer,
                     parcel.tag, comm(parcel.plane), &request),
          "MPI_Issend", parcel.peer);
    sent_.push_back(std::move(parcel));
    sent_requests_.push_back(request);
  }
  waiting_ = std::move(still_waiting);
  return waiting_.size() != before;
}

// An error that a kernel left behind shows here first; Control must stay able to tell the others.
bool MpiThread::may_leave(Parcel& parcel) {
  try {
    return parcel.buffer->event.ready();
  } catch (const Error& error) {
    handlers_.tensor_failed(error.what());
    return false;
  }
}

bool MpiThread::finish_sent() {
  if (sent_.empty()) return false;
  std::vector<int> done(sent_.size());
  std::vector<MPI_Status> statuses(sent_.size());
  int n_done = 0;
  const int code = MPI_Testsome(static_cast<int>(sent_.size()), sent_requests_.data(), &n_done, done.data(),
                                statuses.data());
  if (code == MPI_ERR_IN_STATUS) {
    for (int i = 0; i < n_done; i++) check(statuses[i].MPI_ERROR, "MPI_Issend", sent_[done[i]].peer);
  }
  check(code, "MPI_Testsome", -1);
  std::sort(done.begin(), done.begin() + n_done, std::greater<>());
  for (int i = 0; i < n_done; i++) {
    if (auto& unsent = sent_[done[i]].unsent) --*unsent;
    std::swap(sent_[done[i]], sent_.back());
    std::swap(sent_requests_[done[i]], sent_requests_.back());
    sent_.pop_back();
    sent_requests_.pop_back();
  }
  return n_done > 0;
}

StagingPtr MpiThread::room_for(Plane plane, size_t bytes) {
  if (plane == Plane::control) return control_pool_->take(bytes);
  try {
    return tensor_pool_->take(bytes);
  } catch (const Error& error) {
    handlers_.tensor_failed(error.what());
    return control_pool_->take(bytes);
  }
}

bool MpiThread::accept_arrivals() {
  bool any = false;
  for (Plane plane : {Plane::control, Plane::tensors}) {
    for (;;) {
      int there = 0;
      MPI_Message message;
      MPI_Status status;
      check(MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm(plane), &there, &message, &status), "MPI_Improbe",
            -1);
      if (!there) break;
      any = true;
      int bytes = 0;
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      Arrival arrival{{plane, status.MPI_SOURCE, status.MPI_TAG, room_for(plane, bytes), nullptr}};
      check(MPI_Imrecv(arrival.parcel.buffer->data(), bytes, MPI_BYTE, &message, &arrival.request),
            "MPI_Imrecv", arrival.parcel.peer);
      lives_->heard(arrival.parcel.peer);
      arriving_[queue_of(arrival.parcel)].push_back(std::move(arrival));
    }
  }
  return any;
}

bool MpiThread::deliver_arrivals() {
  bool any = false;
  for (auto& [key, queue] : arriving_) {
    while (!queue.empty()) {
      int done = 0;
      check(MPI_Test(&queue.front().request, &done, MPI_STATUS_IGNORE), "MPI_Imrecv",
            queue.front().parcel.peer);
      if (!done) break;
      any = true;
      Parcel parcel = std::move(queue.front().parcel);
      queue.pop_front();
      lives_->heard(parcel.peer);
      if (parcel.plane == Plane::tensors || parcel.tag != kLifeTag) {
        handlers_.arrived(std::move(parcel));
      } else if (parcel.buffer->bytes == kLifeBytes) {
        uint64_t progress;
        std::memcpy(&progress, parcel.buffer->data(), sizeof progress);
        lives_->said(parcel.peer, static_cast<Phase>(parcel.buffer->data()[8]), progress);
      }
    }
  }
  return any;
}

// A star: everyone tells rank 0, rank 0 tells everyone.
void MpiThread::show_life_to_peers() {
  const double now = now_s();
  const double interval_s = std::min(timeout_s_ / 10, 1.0);
  lives_->running();
  if (now < next_life_s_ || leaving_ >= Leaving::drain) return;
  next_life_s_ = now + interval_s;
  const uint64_t progress = progress_;
  for (int peer = 0; peer < place_.size; peer++) {
    const bool neighbour = (place_.rank == 0) != (peer == 0);
    if (!neighbour || *life_unsent_[peer] > 0) continue;
    Parcel parcel{Plane::control, peer, kLifeTag, control_pool_->take(kLifeBytes), life_unsent_[peer]};
    std::memcpy(parcel.buffer->data(), &progress, sizeof progress);
    parcel.buffer->data()[8] = static_cast<std::byte>(phase_.load());
    ++*life_unsent_[peer];
    waiting_.push_back(std::move(parcel));
  }
}

// Two barriers: signs of life go on until every rank wants to leave; nobody ends MPI while a message is under way.
void MpiThread::leave() {
  const bool all_sent = waiting_.empty() && sent_.empty();
  int passed = 0;
  switch (leaving_) {
    case Leaving::no:
      if (!leave_asked_) return;
      check(MPI_Ibarrier(comm(Plane::control), &barrier_), "MPI_Ibarrier", -1);
      leaving_ = Leaving::wait_for_all;
      return;
    case Leaving::wait_for_all:
      check(MPI_Test(&barrier_, &passed, MPI_STATUS_IGNORE), "MPI_Ibarrier", -1);
      if (passed) leaving_ = Leaving::drain;
      return;
    case Leaving::drain:
      if (!all_sent) return;
      check(MPI_Ibarrier(comm(Plane::control), &barrier_), "MPI_Ibarrier", -1);
      leaving_ = Leaving::wait_for_all_drained;
      return;
    case Leaving::wait_for_all_drained:
      check(MPI_Test(&barrier_, &passed, MPI_STATUS_IGNORE), "MPI_Ibarrier", -1);
      if (passed) leaving_ = Leaving::done;
      return;
    case Leaving::done:
      return;
  }
}

// Spins while traffic is hot, then sleeps: shortly as long as more may follow soon (a pipeline step on CPUs takes some
// milliseconds), a millisecond when nothing happens. An order ends the sleep.
void MpiThread::rest(bool busy) {
  const double now = now_s();
  if (busy) last_busy_s_ = now;
  const double idle_s = now - last_busy_s_;
  const bool receiving = std::any_of(arriving_.begin(), arriving_.end(),
                                     [](const auto& entry) { return !entry.second.empty(); });
  if (idle_s < 50e-6 || (receiving && idle_s < 0.01)) {
    sched_yield();
    return;
  }
  const double sleep_s = idle_s < 0.05 || !waiting_.empty()
                             ? sent_.empty() ? std::clamp(idle_s / 4, 20e-6, 100e-6) : 20e-6
                             : 1e-3;
  std::unique_lock lock(mutex_);
  ordered_.wait_for(lock, std::chrono::duration<double>(sleep_s), [&] { return new_orders_; });
}

}  // namespace pipeinfer

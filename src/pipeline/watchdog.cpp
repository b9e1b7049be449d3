#include "pipeinfer/pipeline/watchdog.h"

#include <algorithm>
#include <chrono>

#include "pipeinfer/base/bytes.h"
#include "pipeinfer/base/clock.h"

namespace pipeinfer {

namespace {

constexpr double kStuckSteps = 20;  // of the longest steps so far
constexpr double kFarewellS = 5;    // most time that the last messages after a fault may take

std::vector<std::byte> fault_bytes(ExitCode code, bool peer_lost, const std::string& message) {
  ByteWriter out;
  out.put(code);
  out.put(peer_lost);
  out.put_text(message);
  return out.take();
}

void sleep_s(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

}  // namespace

Watchdog::Watchdog(Job& job, Log& log, const std::atomic<bool>& stop, double timeout_s)
    : job_(job), log_(log), stop_(stop), timeout_s_(timeout_s), last_progress_s_(now_s()) {
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  quit_ = true;
  thread_.join();
}

void Watchdog::on_fault(std::function<void()> action) {
  std::lock_guard lock(mutex_);
  on_fault_ = std::move(action);
  if (fault_ && on_fault_) on_fault_();
}

void Watchdog::enter(Phase phase) {
  phase_ = phase;
  last_progress_s_ = now_s();
  job_.control().show_life(phase, done_);
}

void Watchdog::step_done(double took_s) {
  longest_step_s_ = std::max(longest_step_s_.load(), took_s);
  last_progress_s_ = now_s();
  job_.control().show_life(phase_, ++done_);
}

void Watchdog::outstanding(size_t steps, double longest_s) {
  longest_step_s_ = std::max(longest_step_s_.load(), longest_s);
  if (outstanding_.exchange(steps) != steps) last_progress_s_ = now_s();
}

void Watchdog::pause() { sleep_s(20e-6); }

void Watchdog::check() const {
  if (!faulty_) return;
  std::lock_guard lock(mutex_);
  throw Error(fault_->code, fault_->message);
}

std::string Watchdog::reason() const {
  std::lock_guard lock(mutex_);
  return fault_ ? fault_->message : "";
}

std::string Watchdog::name(int rank) const { return cat("rank ", rank, " (", job_.hosts()[rank], ")"); }

void Watchdog::watch() {
  const double interval_s = std::clamp(timeout_s_ / 40, 0.01, 0.1);
  while (!quit_) {
    try {
      look();
    } catch (const Error& e) {
      raise({e.code(), e.what(), false}, true);
    }
    sleep_s(interval_s);
  }
}

void Watchdog::look() {
  Control& control = job_.control();
  while (auto message = control.poll(Tag::fault)) {
    ByteReader in(message->bytes, "fault");
    const auto code = in.get<ExitCode>();
    const auto peer_lost = in.get<bool>();
    raise({code, in.get_text(), peer_lost}, job_.rank() == 0);
  }
  while (control.poll(Tag::stop)) stop_requested_ = true;
  // A signal that took a peer too is a fault, not a stop: mpirun sends SIGTERM to the survivors of a dead rank.
  if (job_.rank() == 0) {
    for (int peer = 1; peer < job_.size(); ++peer) check_lost(peer);
    check_stuck();
  } else {
    check_lost(0);
  }
  if (stop_ && !told_stop_.exchange(true)) {
    if (job_.rank() == 0)
      stop_requested_ = true;
    else
      control.send(0, Tag::stop, {});
  }
}

void Watchdog::check_lost(int peer) {
  if (faulty_ || leaving_) return;
  const PeerLife life = job_.control().life(peer);
  if (life.silent_s <= timeout_s_) return;
  raise({ExitCode::failed,
         cat(name(peer), " is lost: no sign of life for ", life.silent_s, " s, after ", life.progress,
             " steps (--timeout-s is ", timeout_s_, ")"),
         true},
        true);
}

// The first rank of those that have completed the fewest steps holds up the others. One that is falling silent is
// judged by that.
void Watchdog::check_stuck() {
  const double patience_s = std::max(timeout_s_, kStuckSteps * longest_step_s_.load());
  if (faulty_ || leaving_ || outstanding_ == 0 || now_s() - last_progress_s_ < patience_s) return;
  int slowest = 0;
  uint64_t least = done_;
  for (int peer = 1; peer < job_.size(); ++peer)
    if (const auto progress = job_.control().life(peer).progress; progress < least)
      slowest = peer, least = progress;
  if (slowest != 0 && job_.control().life(slowest).silent_s > timeout_s_ / 2) return;
  raise({ExitCode::failed,
         cat(name(slowest), " is stuck: it shows life but completed no step for ", patience_s, " s, after ",
             least, " steps"),
         true},
        true);
}

void Watchdog::raise(Fault fault, bool tell) {
  {
    std::lock_guard lock(mutex_);
    if (fault_) return;
    fault_ = fault;
    if (job_.rank() == 0 || (fault.peer_lost && tell))
      log_.fatal(fault.message);
    else
      log_.info("the run ends: ", fault.message);
    faulty_ = true;
  }
  if (tell) tell_all(fault);
  job_.control().wake();
  std::lock_guard lock(mutex_);
  if (on_fault_) on_fault_();
}

void Watchdog::tell_all(const Fault& fault) {
  const auto bytes = fault_bytes(fault.code, fault.peer_lost, fault.message);
  if (job_.rank() != 0) return job_.control().send(0, Tag::fault, bytes);
  for (int peer = 1; peer < job_.size(); ++peer) job_.control().send(peer, Tag::fault, bytes);
}

ExitCode Watchdog::report(const Error& error) {
  std::string message = error.what();
  if (job_.rank() != 0) message = cat(name(job_.rank()), ": ", message);
  raise({error.code(), message, false}, true);
  std::lock_guard lock(mutex_);
  return fault_->code;
}

Watchdog::Farewell Watchdog::leave(ExitCode code) {
  Control& control = job_.control();
  control.show_life(Phase::finishing, done_);
  leaving_ = true;
  const auto lost = [&] {
    std::lock_guard lock(mutex_);
    return fault_ && fault_->peer_lost;
  };
  if (job_.rank() == 0) {
    {
      std::lock_guard lock(mutex_);
      if (fault_) code = fault_->code;
    }
    ByteWriter out;
    out.put(code);
    const auto bytes = out.take();
    for (int peer = 1; peer < job_.size(); ++peer) control.send(peer, Tag::exit_code, bytes);
    const double end = now_s() + kFarewellS;
    while (!control.flushed() && now_s() < end) sleep_s(1e-3);
    return {code, !lost()};
  }
  // Rank 0 answers a fault by an exit code; one that is gone does not.
  const double lost_end = now_s() + kFarewellS;
  while (!lost() || now_s() < lost_end) {
    if (auto message = control.poll(Tag::exit_code)) {
      const auto agreed = ByteReader(message->bytes, "exit code").get<ExitCode>();
      return {agreed, !lost()};
    }
    if (!lost() && control.life(0).silent_s > timeout_s_) break;
    control.wait(0.02);
  }
  std::lock_guard lock(mutex_);
  if (!fault_ || !fault_->peer_lost)  // nobody has said anything to the user
    log_.fatal(fault_ ? fault_->message : cat(name(0), " is lost: it did not say how the run ended"));
  return {fault_ ? fault_->code : ExitCode::failed, false};
}

}  // namespace pipeinfer

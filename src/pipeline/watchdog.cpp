#include "pipeinfer/pipeline/watchdog.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "pipeinfer/base/bytes.h"
#include "pipeinfer/base/clock.h"

namespace pipeinfer {

namespace {

constexpr double kStuckSteps = 20;       // of the longest steps so far
constexpr double kFarewellS = 1.5;       // most time that the last messages after a fault may take
constexpr double kLastResortS = 6;       // from a fault to the end by force
constexpr double kComputingShare = .05;  // of a core: a thread that gets on, also where cores are crowded
constexpr size_t kPlansKept = 64;

std::vector<std::byte> fault_bytes(ExitCode code, bool peer_lost, const std::string& message) {
  ByteWriter out;
  out.put(code);
  out.put(peer_lost);
  out.put_text(message);
  return out.take();
}

double read_s(clockid_t clock) {
  timespec time = {};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void sleep_s(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

}  // namespace

Watchdog::Watchdog(Job& job, Log& log, const std::atomic<bool>& stop, double timeout_s)
    : job_(job),
      log_(log),
      stop_(stop),
      timeout_s_(timeout_s),
      last_progress_s_(now_s()),
      looked_s_(now_s()) {
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

void Watchdog::planned(uint64_t step, int lane) {
  std::lock_guard lock(mutex_);
  plans_.emplace_back(step, lane);
  if (plans_.size() <= kPlansKept) return;
  plans_.pop_front();
  ++first_plan_;
}

Watchdog::Computing::Computing(Watchdog& watchdog) : watchdog_(watchdog) {
  clockid_t clock = {};
  if (pthread_getcpuclockid(pthread_self(), &clock) != 0) return;
  std::lock_guard lock(watchdog_.mutex_);
  watchdog_.compute_clock_ = clock;
}

Watchdog::Computing::~Computing() {
  std::lock_guard lock(watchdog_.mutex_);
  watchdog_.compute_clock_.reset();
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

// A rank is a stage.
std::string Watchdog::name(int rank) const {
  return cat("rank ", rank, " (", job_.hosts()[rank], ", stage ", rank, ")");
}

std::string Watchdog::last_seen(uint64_t progress) const {
  std::lock_guard lock(mutex_);
  if (progress < first_plan_ || progress >= first_plan_ + plans_.size())
    return cat("last seen after ", progress, " steps");
  const auto& [step, lane] = plans_[progress - first_plan_];
  return cat("last seen in step ", step, " of lane ", lane);
}

void Watchdog::watch() {
  const double interval_s = std::clamp(timeout_s_ / 40, 0.01, 0.1);
  while (!quit_) {
    try {
      look();
    } catch (const Error& e) {
      raise({e.code(), e.what(), false}, true);
    }
    leave_at_last();
    sleep_s(interval_s);
  }
}

void Watchdog::leave_at_last() {
  if (faulty_ && now_s() - fault_s_ > kLastResortS) job_.abort(static_cast<int>(fault_->code));
}

// Where this process was stopped for a while (a suspended job), nobody is to blame for that time. And if the others
// have meanwhile given it up, they are no failures either: their end is near, or its own.
void Watchdog::notice_suspension() {
  const double now = now_s(), gap_s = now - looked_s_;
  looked_s_ = now;
  if (gap_s < timeout_s_ / 4) return;
  last_progress_s_ = std::min(now, last_progress_s_ + gap_s);
  trust_from_s_ = now + timeout_s_;
}

// A step on a CPU may take longer than any deadline; its thread's clock tells it from one that hangs.
void Watchdog::notice_computing() {
  std::optional<double> computed_s;
  {
    std::lock_guard lock(mutex_);
    if (compute_clock_) computed_s = read_s(*compute_clock_);  // the thread lives as long as the clock is set
  }
  const double now = now_s(), passed_s = now - clock_read_s_;
  if (computed_s && passed_s < timeout_s_ / 10) return;
  const bool computing = computed_s && *computed_s - computed_s_ > kComputingShare * passed_s;
  computed_s_ = computed_s.value_or(0);
  clock_read_s_ = now;
  if (computing) last_progress_s_ = now;
  if (phase_ == Phase::serving)
    job_.control().show_life(computing ? Phase::computing : Phase::serving, done_);
}

void Watchdog::look() {
  Control& control = job_.control();
  notice_suspension();
  notice_computing();
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
  const PeerLife life = job_.control().life(peer);
  const bool gone = life.gone && now_s() > trust_from_s_;
  if (!gone && life.silent_s <= timeout_s_) return;
  const std::string why =
      gone ? std::string("its process is gone")
           : cat("no sign of life for ", life.silent_s, " s (--timeout-s is ", timeout_s_, ")");
  raise({ExitCode::failed, cat(name(peer), " is lost: ", why, ", ", last_seen(life.progress)), true}, true);
  if (peer == 0) rank_0_lost_ = true;
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
  if (slowest != 0) {
    const PeerLife life = job_.control().life(slowest);
    if (life.silent_s > timeout_s_ / 2) return;
    if (life.phase == Phase::computing) {
      last_progress_s_ = now_s();
      return;
    }
  }
  raise({ExitCode::failed,
         cat(name(slowest), " is stuck: it shows life but completed no step for ", patience_s, " s, ",
             last_seen(least)),
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
    fault_s_ = now_s();
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
  phase_ = Phase::finishing;
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
    const double begin_s = now_s();  // a peer that takes no message will be lost
    while (!control.flushed() && !(faulty_ && now_s() > std::max(begin_s, fault_s_.load()) + kFarewellS))
      sleep_s(1e-3);
    return {lost() ? ExitCode::failed : code, !lost()};
  }
  // Rank 0 answers a fault by an exit code; one that is lost does not.
  const double lost_end = now_s() + 2 * kFarewellS;
  while (!rank_0_lost_ && (!lost() || now_s() < lost_end)) {
    if (auto message = control.poll(Tag::exit_code)) {
      const auto agreed = ByteReader(message->bytes, "exit code").get<ExitCode>();
      return {agreed, !lost()};
    }
    control.wait(0.02);
  }
  std::lock_guard lock(mutex_);
  if (!fault_->peer_lost) log_.fatal(fault_->message);  // rank 0 has not said it to the user
  return {fault_->code, false};
}

}  // namespace pipeinfer

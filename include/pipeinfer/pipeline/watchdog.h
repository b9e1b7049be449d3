// The health of the job as one rank sees it: faults, silent peers, stop requests, and the exit code all agree on.
#pragma once

#include <time.h>

#include <atomic>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/log.h"
#include "pipeinfer/comm/job.h"

namespace pipeinfer {

/// A thread that watches while the rank works. Rank 0 hears every rank and is the one that speaks to the user: a fault
/// of rank r goes to rank 0, which prints it once and tells all. A rank that loses rank 0 prints for itself.
///
/// A peer is lost when its process is gone, or it was silent for timeout_s; while serving it is stuck when steps are
/// outstanding and none completed for the greater of timeout_s and 20 of the longest steps so far, unless it computes.
/// A rank that has not left some seconds after a fault, whatever hangs, is ended together with the job.
class Watchdog {
 public:
  /// `stop` becomes true when this process got SIGTERM or SIGUSR1; it and the rest outlive the watchdog.
  Watchdog(Job& job, Log& log, const std::atomic<bool>& stop, double timeout_s);
  ~Watchdog();

  /// What ends blocking waits on this rank once there is a fault (Transport::abort); empty: nothing. Any thread.
  void on_fault(std::function<void()> action);

  /// This rank's phase, for its peers.
  void enter(Phase phase);

  /// This rank knows of the next plan: every stage executes all plans in the same order.
  void planned(uint64_t step, int lane);

  /// While it lives, the thread that made it computes a step on the CPU, without waiting for anybody.
  class Computing {
   public:
    explicit Computing(Watchdog& watchdog);
    ~Computing();

   private:
    Watchdog& watchdog_;
  };

  /// This rank's stage has completed a step.
  void step_done(double took_s);

  /// Rank 0: steps that are planned and not committed, and the longest that one took from plan to result.
  void outstanding(size_t steps, double longest_s);

  /// Throws the fault, if there is one: call it in every loop that waits.
  void check() const;

  /// Waits until `done()`; sleeps a little between looks once it takes long. Throws the fault, if there is one.
  template <typename Done>
  void await(Done done) const {
    for (int i = 0; !done(); ++i) {
      check();
      if (i > 200) pause();
    }
  }

  /// Why the run ends: the first fault's sentence; empty without one.
  std::string reason() const;

  /// A rank, anywhere, was told to stop (rank 0 only).
  bool stop_requested() const { return stop_requested_.load(); }

  /// This rank failed: the first fault is printed, once, and told to all. Returns the exit code of that first fault.
  ExitCode report(const Error& error);

  /// The end of the run: all ranks agree on rank 0's code (or the fault's). True: every rank is there to finalize.
  struct Farewell {
    ExitCode code;
    bool orderly;
  };
  Farewell leave(ExitCode code);

 private:
  struct Fault {
    ExitCode code;
    std::string message;
    bool peer_lost;
  };

  void watch();
  void look();
  void raise(Fault fault, bool tell);
  void tell_all(const Fault& fault);
  void check_lost(int peer);
  void check_stuck();
  void notice_suspension();
  void notice_computing();
  void leave_at_last();
  std::string name(int rank) const;
  std::string last_seen(uint64_t progress) const;
  static void pause();

  Job& job_;
  Log& log_;
  const std::atomic<bool>& stop_;
  const double timeout_s_;
  mutable std::mutex mutex_;
  std::optional<Fault> fault_;  // the first one
  std::function<void()> on_fault_;
  std::atomic<bool> faulty_{false}, stop_requested_{false}, quit_{false}, told_stop_{false}, leaving_{false},
      rank_0_lost_{false};
  std::atomic<Phase> phase_{Phase::starting};
  std::atomic<uint64_t> done_{0};
  std::atomic<size_t> outstanding_{0};
  std::atomic<double> longest_step_s_{0}, last_progress_s_, fault_s_{0};
  std::deque<std::pair<uint64_t, int>> plans_;  // step and lane of the latest ones
  uint64_t first_plan_ = 0;                     // how many came before those
  std::optional<clockid_t> compute_clock_;      // of the thread that computes
  // Of the watching thread alone.
  double looked_s_, trust_from_s_ = 0, computed_s_ = 0, clock_read_s_ = 0;
  std::thread thread_;
};

}  // namespace pipeinfer

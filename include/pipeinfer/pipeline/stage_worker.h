// One rank's part of every step: receive, compute, send, each on a stream of its own.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "pipeinfer/batch/stage.h"
#include "pipeinfer/comm/transport.h"
#include "pipeinfer/pipeline/layout.h"
#include "pipeinfer/pipeline/watchdog.h"
#include "pipeinfer/trace/step_recorder.h"

namespace pipeinfer {

/// What a rank works with; everything outlives the worker.
struct RankContext {
  Job& job;
  Log& log;
  Watchdog& watchdog;
  Transport& transport;
  StepRecorder& recorder;
  Device device;
};

/// Executes plans in step order. Work of several steps is in flight at once (Layout::max_in_flight, at most
/// kMostFlights): hidden states of one step are sent while another one computes, and received when the step before has
/// computed, by which time they have come (see StageWorker::receive).
/// Sampled tokens go from the last stage to stage 0 on a link of their own; stage 0 takes them right before the lane's
/// next step, still on the device.
class StageWorker {
 public:
  /// Starts opening the links. Throws Error.
  StageWorker(RankContext& rank, const Layout& layout, Stage& stage);

  /// Waits until all links are open.
  void connect();

  /// Enqueues a step; waits only where kMostFlights steps are in flight, or on a host-staged transport.
  void execute(StepPlan plan);

  /// Last stage: the oldest result that is complete and was not taken yet.
  std::optional<StepResult> take_result();

  /// Looks which steps have completed; true if any did.
  bool retire();

  /// No step is in flight.
  bool idle() const { return oldest_ == next_; }

  /// Waits for everything in flight, and takes the tokens that no later step asked for. Every stage calls it after the
  /// same plan.
  void finish();

 private:
  // Buffers and events of one step in flight.
  struct Flight {
    explicit Flight(Device device);
    StepPlan plan;
    double begun_s = 0;
    int64_t received_step = -1;
    bool receives = false;  // hidden states, or tokens
    DeviceBuffer hidden_in, hidden_out, sampled, top;
    PinnedBuffer host_sampled, host_top;
    Event recv_begin, received, compute_begin, computed, send_begin, sent, reported;
  };

  void receive(Flight& flight);
  int64_t take_tokens(int lane);  // returns the newest step whose tokens were taken, -1: none
  void send(Flight& flight);
  Flight& flight(uint64_t index) { return flights_[index % flights_.size()]; }

  RankContext& rank_;
  const Layout layout_;
  const PlanLimits limits_;
  Stage& stage_;
  const int stage_index_;
  const bool first_, last_;
  Stream compute_, recv_, send_, tokens_;
  Link* hidden_in_ = nullptr;
  Link* hidden_out_ = nullptr;
  Link* tokens_link_ = nullptr;  // to stage 0 on the last stage, from the last stage on stage 0
  std::vector<Flight> flights_;
  uint64_t oldest_ = 0, next_ = 0;  // flights oldest_ to next_ - 1 are in flight
  std::deque<StepPlan> untaken_;    // stage 0: steps whose tokens were not taken yet, in step order
  DeviceBuffer taken_;              // stage 0: where they arrive
  std::deque<StepResult> results_;
};

}  // namespace pipeinfer

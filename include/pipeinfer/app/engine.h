// Everything of one rank that serves: device, stage, transport, worker; put together in the order that the ranks agree
// on over Control (hello -> layout -> load -> ready).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pipeinfer/app/run_plan.h"
#include "pipeinfer/model/llama_stage.h"
#include "pipeinfer/pipeline/coordinator.h"

namespace pipeinfer {

/// What a command works with, on every rank.
struct App {
  Job& job;
  Log& log;
  Watchdog& watchdog;
  double started_s;               ///< now_s() of the start of the process
  std::string launch_error = {};  ///< doctor: why this task is alone, though others were started with it
  bool root() const { return job.rank() == 0; }
};

/// Rank 0: everything asked for is in order; the others go on where there is something to serve. Others: waits for that.
bool begin(App& app, bool serve = false);

/// Waits for the next message of this tag. Throws the fault, if there is one.
Message await_message(App& app, Tag tag);

/// The device that `run.device` means on this rank, made current. Throws Error(usage).
Device open_device(const RunConfig& run, const Job& job);

/// What RunConfig::transport means.
TransportKind transport_kind(const std::string& name);

/// Links in use: what waits on them ends with a fault, and when they are left without `closed`.
class LinksGuard {
 public:
  LinksGuard(Watchdog& watchdog, Transport& transport);
  ~LinksGuard();
  LinksGuard(const LinksGuard&) = delete;
  LinksGuard& operator=(const LinksGuard&) = delete;
  void closed() { closed_ = true; }

 private:
  Watchdog& watchdog_;
  Transport& transport_;
  bool closed_ = false;
};

/// How one rank loaded its weights.
struct LoadFigures {
  double seconds = 0;
  uint64_t bytes = 0;    ///< read from files
  double warm_up_s = 0;  ///< first runs of the kernels, capture of CUDA graphs
};

class Engine {
 public:
  /// Every rank calls it; it returns when all ranks are ready to serve. Weights come from `model_folder`, or are made
  /// up where that is empty. Throws Error.
  Engine(App& app, const RunConfig& run, const ModelConfig& model, const std::string& model_folder,
         bool want_top);

  const RunPlan& plan() const { return plan_; }
  const std::vector<RankResources>& ranks() const { return ranks_; }  ///< rank 0 only
  const std::vector<LoadFigures>& loads() const { return loads_; }    ///< rank 0 only: of every rank
  Device device() const { return device_; }
  const StepRecorder& recorder() const { return recorder_; }

  /// Rank 0: a coordinator that tells `events`. At most one at a time.
  Coordinator coordinate(SchedulerEvents& events) {
    return Coordinator(*rank_, plan_.layout, *worker_, events);
  }

  /// Rank 0, between requests: see gather_reports.
  std::vector<StageReport> reports(bool last, bool want_trace) {
    return gather_reports(*rank_, *worker_, last, want_trace);
  }

  /// Other ranks: serves until the last report.
  void serve(const std::function<void()>& tick) { serve_stage(*rank_, *worker_, tick); }

  /// Every rank, after the last report: closes the links in an orderly way.
  void close();

 private:
  void agree(const RunConfig& run, const ModelConfig& model, bool want_top);
  void gather_loads(const LoadFigures& own);

  App& app_;
  const double timeout_s_;
  Device device_;
  RunPlan plan_;
  std::vector<RankResources> ranks_;
  std::vector<LoadFigures> loads_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<LlamaStage> stage_;
  StepRecorder recorder_;
  std::unique_ptr<RankContext> rank_;
  std::unique_ptr<StageWorker> worker_;

  // Destroyed first, also where the constructor throws: what is in flight ends before its buffers do.
  std::unique_ptr<LinksGuard> links_;
};

}  // namespace pipeinfer

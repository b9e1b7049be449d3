#include "pipeinfer/pipeline/coordinator.h"

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/clock.h"

namespace pipeinfer {

namespace {

// Waiting for messages while the device works: events are polled, so only briefly.
constexpr double kBusyWaitS = 20e-6;
constexpr double kIdleWaitS = 20e-3;

double wait_s(const StageWorker& worker) { return worker.idle() ? kIdleWaitS : kBusyWaitS; }

}  // namespace

Coordinator::Coordinator(RankContext& rank, const Layout& layout, StageWorker& worker,
                         SchedulerEvents& events)
    : rank_(rank), worker_(worker), scheduler_(layout.scheduler, events), n_lanes_(layout.scheduler.lanes) {}

bool Coordinator::serve(double grace_s, const std::function<void()>& tick) {
  rank_.watchdog.enter(Phase::serving);
  double give_up_s = 0;  // 0: nobody asked to stop
  bool cancelled = false;
  while (!scheduler_.idle()) {
    rank_.watchdog.check();
    if (rank_.watchdog.stop_requested() && give_up_s == 0) {
      rank_.log.info("stop requested: requests in flight get ", grace_s, " s to finish");
      scheduler_.drain();
      give_up_s = now_s() + grace_s;
    }
    bool moved = commit_results();
    moved |= plan_lanes();
    tick();
    if (give_up_s > 0 && !cancelled && now_s() > give_up_s) {
      scheduler_.cancel();
      cancelled = true;
    }
    if (!moved) rank_.job.control().wait(wait_s(worker_));
  }
  return give_up_s > 0;
}

bool Coordinator::commit_results() {
  bool any = worker_.retire();
  const auto commit = [&](const StepResult& result) {
    const auto planned = planned_s_.find(result.step);
    PI_CHECK(planned != planned_s_.end(), "step ", result.step, " was not planned");
    scheduler_.commit(result, now_s());
    const double took_s = now_s() - planned->second;
    planned_s_.erase(planned);
    rank_.watchdog.outstanding(planned_s_.size(), took_s);
    any = true;
  };
  while (auto result = worker_.take_result()) commit(*result);
  while (auto message = rank_.job.control().poll(Tag::result)) commit(StepResult::parse(message->bytes));
  return any;
}

// One step at a time for each lane, so that results are looked at between steps that take long.
bool Coordinator::plan_lanes() {
  for (int i = 0; i < n_lanes_; ++i) {
    const int lane = (next_lane_ + i) % n_lanes_;
    auto plan = scheduler_.plan(lane);
    if (!plan) continue;
    next_lane_ = (lane + 1) % n_lanes_;
    planned_s_[plan->step] = now_s();
    rank_.watchdog.planned(plan->step, plan->lane);
    rank_.watchdog.outstanding(planned_s_.size(), 0);
    if (rank_.job.size() > 1) {
      const auto bytes = plan->serialize();
      for (int peer = 1; peer < rank_.job.size(); ++peer) rank_.job.control().send(peer, Tag::plan, bytes);
    }
    worker_.execute(std::move(*plan));
    return true;
  }
  return false;
}

void serve_stage(RankContext& rank, StageWorker& worker, const std::function<void()>& tick) {
  Control& control = rank.job.control();
  rank.watchdog.enter(Phase::serving);
  for (;;) {
    rank.watchdog.check();
    tick();
    bool moved = worker.retire();
    while (auto result = worker.take_result()) control.send(0, Tag::result, result->serialize());
    if (auto message = control.poll(Tag::plan)) {
      StepPlan plan = StepPlan::parse(message->bytes);
      rank.watchdog.planned(plan.step, plan.lane);
      worker.execute(std::move(plan));
      moved = true;
    } else if (auto request = control.poll(Tag::finish)) {  // comes after all plans
      if (answer_report(rank, worker, *request)) return;
      moved = true;
    }
    if (!moved) control.wait(wait_s(worker));
  }
}

}  // namespace pipeinfer

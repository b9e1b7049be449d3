#include "pipeinfer/pipeline/stage_worker.h"

#include <algorithm>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/trace/range.h"

namespace pipeinfer {

namespace {
constexpr int kMostFlights = 8;  // each holds two buffers of hidden states
}

StageWorker::Flight::Flight(Device device)
    : recv_begin(device),
      received(device),
      compute_begin(device),
      computed(device),
      send_begin(device),
      sent(device),
      reported(device) {}

StageWorker::StageWorker(RankContext& rank, const Layout& layout, Stage& stage)
    : rank_(rank),
      layout_(layout),
      limits_(layout.limits()),
      stage_(stage),
      stage_index_(rank.job.rank()),
      first_(stage_index_ == 0),
      last_(layout.is_last(stage_index_)),
      compute_(rank.device),
      recv_(rank.device),
      send_(rank.device),
      tokens_(rank.device) {
  const Device device = rank.device;
  const size_t hidden_bytes = layout.max_tokens() * stage.hidden_bytes();
  const size_t sampled_bytes = layout.max_tokens() * sizeof(int32_t);
  const size_t top_bytes =
      layout.scheduler.want_top ? layout.max_tokens() * kTopLogits * sizeof(TopLogit) : 0;
  const int n_flights = std::min(std::max(2, layout.max_in_flight()), kMostFlights);
  flights_.reserve(n_flights);
  for (int i = 0; i < n_flights; ++i) {
    Flight& flight = flights_.emplace_back(device);
    if (!first_) flight.hidden_in = DeviceBuffer(device, hidden_bytes, "received hidden states");
    if (!last_) flight.hidden_out = DeviceBuffer(device, hidden_bytes, "hidden states to send");
    if (!last_) continue;
    flight.sampled = DeviceBuffer(device, sampled_bytes, "sampled tokens");
    flight.host_sampled = PinnedBuffer(device, sampled_bytes, "sampled tokens");
    if (top_bytes == 0) continue;
    flight.top = DeviceBuffer(device, top_bytes, "top logits");
    flight.host_top = PinnedBuffer(device, top_bytes, "top logits");
  }
  if (first_ && last_) return;
  const int last_stage = layout.n_stages() - 1;
  if (!first_) hidden_in_ = &rank.transport.connect(Channel::hidden, stage_index_ - 1, stage_index_);
  if (!last_) hidden_out_ = &rank.transport.connect(Channel::hidden, stage_index_, stage_index_ + 1);
  if (first_ || last_) tokens_link_ = &rank.transport.connect(Channel::tokens, last_stage, 0);
  if (first_) taken_ = DeviceBuffer(device, sampled_bytes, "returned tokens");
}

void StageWorker::connect() {
  rank_.watchdog.await([&] { return rank_.transport.connected(); });
}

void StageWorker::execute(StepPlan plan) {
  plan.check(limits_);
  // The flight's previous step is retired then: its buffers are free.
  rank_.watchdog.await([&] { return retire(), next_ - oldest_ < flights_.size(); });
  Flight& flight = this->flight(next_);
  flight.plan = std::move(plan);
  flight.begun_s = now_s();
  flight.compute_begin.record(compute_);
  stage_.prepare(flight.plan, compute_);
  receive(flight);
  const StepBuffers buffers{.hidden_in = flight.hidden_in.data(),
                            .hidden_out = flight.hidden_out.data(),
                            .sampled = flight.sampled.as<int32_t>(),
                            .top = flight.plan.want_top ? flight.top.as<TopLogit>() : nullptr};
  {
    std::optional<Watchdog::Computing> computing;
    if (!rank_.device.is_cuda()) computing.emplace(rank_.watchdog);
    stage_.run(flight.plan, buffers, compute_);
  }
  flight.computed.record(compute_);
  send(flight);
  ++next_;
}

void StageWorker::receive(Flight& flight) {
  flight.receives = !first_ || !untaken_.empty();
  if (!flight.receives) {
    flight.received_step = -1;
    return;
  }
  if (first_) {  // tokens come on the compute stream: nothing of this lane can run before them
    flight.recv_begin.record(compute_);
    flight.received_step = take_tokens(flight.plan.lane);
    flight.received.record(compute_);
    return;
  }
  const Range range("recv");
  // Not before the step before has computed: a receive that waits for its sender keeps a multiprocessor or more for itself,
  // which costs the kernels beside it a fifth of their speed (two H200s). What it sends lies in NCCL's buffers, and is
  // fetched in some 10 us; only where that is more than they hold, of a long prefill, does the sender wait. The step before
  // is the flight's previous one at the latest: hidden_in is free.
  if (next_ > 0) this->flight(next_ - 1).computed.block(recv_);
  flight.recv_begin.record(recv_);
  hidden_in_->recv(flight.hidden_in.data(), flight.plan.n_tokens() * stage_.hidden_bytes(), recv_);
  flight.received.record(recv_);
  flight.received.block(compute_);
  flight.received_step = static_cast<int64_t>(flight.plan.step);
}

// All steps up to the lane's latest one: the link's order is the steps' order.
int64_t StageWorker::take_tokens(int lane) {
  int64_t newest = -1;
  size_t n = untaken_.size();
  while (n > 0 && untaken_[n - 1].lane != lane) --n;
  for (; n > 0; --n) {
    const StepPlan& earlier = untaken_.front();
    tokens_link_->recv(taken_.data(), earlier.n_samples() * sizeof(int32_t), compute_);
    stage_.take_tokens(earlier, taken_.as<int32_t>(), compute_);
    newest = static_cast<int64_t>(earlier.step);
    untaken_.pop_front();
  }
  return newest;
}

void StageWorker::send(Flight& flight) {
  const int n_samples = flight.plan.n_samples();
  const Range range("send");
  if (!last_) {
    flight.computed.block(send_);
    flight.send_begin.record(send_);
    hidden_out_->send(flight.hidden_out.data(), flight.plan.n_tokens() * stage_.hidden_bytes(), send_);
    flight.sent.record(send_);
    if (first_ && n_samples > 0) untaken_.push_back(flight.plan);
    return;
  }
  flight.computed.block(tokens_);
  if (n_samples > 0) {
    copy_async(flight.host_sampled.data(), flight.sampled.data(), n_samples * sizeof(int32_t), tokens_);
    if (flight.plan.want_top)
      copy_async(flight.host_top.data(), flight.top.data(), n_samples * kTopLogits * sizeof(TopLogit),
                 tokens_);
  }
  flight.reported.record(tokens_);
  if (first_ || n_samples == 0) {
    flight.sent.record(tokens_);
    return;
  }
  flight.computed.block(send_);
  flight.send_begin.record(send_);
  tokens_link_->send(flight.sampled.data(), n_samples * sizeof(int32_t), send_);
  flight.sent.record(send_);
}

bool StageWorker::retire() {
  bool any = false;
  for (; oldest_ < next_; ++oldest_, any = true) {
    Flight& flight = this->flight(oldest_);
    if (!flight.computed.ready() || !flight.sent.ready() || !flight.reported.ready()) break;
    const StepPlan& plan = flight.plan;
    StepTimes times{.step = plan.step,
                    .lane = plan.lane,
                    .n_tokens = plan.n_tokens(),
                    .n_decode = plan.n_decode(),
                    .received_step = flight.received_step,
                    .compute_begin_s = flight.compute_begin.time_s(),
                    .compute_end_s = flight.computed.time_s()};
    times.recv_begin_s = flight.receives ? flight.recv_begin.time_s() : times.compute_begin_s;
    times.recv_end_s = flight.receives ? flight.received.time_s() : times.compute_begin_s;
    times.compute_begin_s = std::max(times.compute_begin_s, times.recv_end_s);  // prepared meanwhile
    const bool sends = !last_ || (!first_ && plan.n_samples() > 0);
    times.send_begin_s = sends ? flight.send_begin.time_s() : times.compute_end_s;
    times.send_end_s = sends ? flight.sent.time_s() : times.compute_end_s;
    rank_.recorder.add(times);
    if (last_) {
      StepResult result{plan.step, plan.lane, {}, {}};
      const auto* sampled = flight.host_sampled.as<int32_t>();
      result.tokens.assign(sampled, sampled + plan.n_samples());
      if (plan.want_top) {
        const auto* top = flight.host_top.as<TopLogit>();
        result.top.assign(top, top + plan.n_samples() * kTopLogits);
      }
      results_.push_back(std::move(result));
    }
    rank_.watchdog.step_done(now_s() - flight.begun_s);
  }
  return any;
}

std::optional<StepResult> StageWorker::take_result() {
  if (results_.empty()) return std::nullopt;
  StepResult result = std::move(results_.front());
  results_.pop_front();
  return result;
}

void StageWorker::finish() {
  for (; !untaken_.empty(); untaken_.pop_front())
    tokens_link_->recv(taken_.data(), untaken_.front().n_samples() * sizeof(int32_t), compute_);
  Event done(rank_.device);
  done.record(compute_);
  rank_.watchdog.await([&] { return retire(), idle() && done.ready(); });
}

}  // namespace pipeinfer

#include "pipeinfer/pipeline/report.h"

#include <algorithm>
#include <limits>

#include "pipeinfer/base/bytes.h"
#include "pipeinfer/base/clock.h"

namespace pipeinfer {

namespace {

constexpr int kPings = 16;  // the quickest one tells the clock offset best (as NTP does, RFC 5905)

struct Ask {
  bool last, want_trace;
};

template <typename T>
std::vector<std::byte> pack(const T& value) {
  ByteWriter out;
  out.put(value);
  return out.take();
}

Message await_message(RankContext& rank, Tag tag) {
  std::optional<Message> message;
  rank.watchdog.await([&] {
    message = rank.job.control().poll(tag);
    if (!message) rank.job.control().wait(0.01);
    return message.has_value();
  });
  return std::move(*message);
}

// This rank's steps on rank 0's clock, its sends told to the next stage, the sends of the stage before it heard.
StageReport make_report(RankContext& rank, double offset_s, bool want_trace) {
  auto steps = rank.recorder.steps();
  rank.recorder.clear();
  std::vector<SendTime> sends;
  std::vector<double> compute;
  for (StepTimes& step : steps) {
    for (double* time : {&step.recv_begin_s, &step.recv_end_s, &step.compute_begin_s, &step.compute_end_s,
                         &step.send_begin_s, &step.send_end_s})
      *time -= offset_s;
    sends.push_back({step.step, step.send_begin_s});
    compute.push_back(step.compute_end_s - step.compute_begin_s);
  }
  const int n = rank.job.size(), self = rank.job.rank();
  std::vector<SendTime> heard;
  if (n > 1) {
    ByteWriter out;
    out.put_all(sends);
    rank.job.control().send((self + 1) % n, Tag::timing, out.take());
    heard = ByteReader(await_message(rank, Tag::timing).bytes, "send times").get_all<SendTime>();
  }
  StageReport report;
  report.rank = self;
  report.steps = static_cast<int64_t>(steps.size());
  report.time = split_stage_time(steps, heard);
  report.use = device_use(rank.device);
  if (!compute.empty()) {
    std::nth_element(compute.begin(), compute.begin() + compute.size() / 2, compute.end());
    report.median_step_s = compute[compute.size() / 2];
  }
  if (want_trace) report.trace = std::move(steps);
  return report;
}

// How far the peer's clock is ahead of ours.
double clock_offset(RankContext& rank, int peer) {
  double best_s = std::numeric_limits<double>::infinity(), offset_s = 0;
  for (int i = 0; i < kPings; ++i) {
    const double sent_s = now_s();
    rank.job.control().send(peer, Tag::clock, {});
    const auto theirs_s = ByteReader(await_message(rank, Tag::clock).bytes, "clock").get<double>();
    const double took_s = now_s() - sent_s;
    if (took_s < best_s) best_s = took_s, offset_s = theirs_s - (sent_s + took_s / 2);
  }
  return offset_s;
}

}  // namespace

std::vector<StageReport> gather_reports(RankContext& rank, StageWorker& worker, bool last, bool want_trace) {
  Control& control = rank.job.control();
  const int n = rank.job.size();
  for (int peer = 1; peer < n; ++peer) control.send(peer, Tag::finish, pack(Ask{last, want_trace}));
  worker.finish();
  for (int peer = 1; peer < n; ++peer) {
    const double offset_s = clock_offset(rank, peer);
    control.send(peer, Tag::clock, pack(offset_s));
  }
  std::vector<StageReport> reports(n);
  reports[0] = make_report(rank, 0, want_trace);
  for (int i = 1; i < n; ++i) {
    const Message message = await_message(rank, Tag::finish);
    ByteReader in(message.bytes, "stage report");
    StageReport& report = reports[message.from];
    report.rank = message.from;
    report.steps = in.get<int64_t>();
    report.time = in.get<StageTime>();
    report.median_step_s = in.get<double>();
    report.use = in.get<DeviceUse>();
    report.trace = in.get_all<StepTimes>();
    in.end();
  }
  return reports;
}

bool answer_report(RankContext& rank, StageWorker& worker, const Message& request) {
  const Ask ask = ByteReader(request.bytes, "report request").get<Ask>();
  worker.finish();
  Control& control = rank.job.control();
  for (int i = 0; i < kPings; ++i) {
    await_message(rank, Tag::clock);
    control.send(0, Tag::clock, pack(now_s()));
  }
  const auto offset_s = ByteReader(await_message(rank, Tag::clock).bytes, "clock offset").get<double>();
  const StageReport report = make_report(rank, offset_s, ask.want_trace);
  ByteWriter out;
  out.put(report.steps);
  out.put(report.time);
  out.put(report.median_step_s);
  out.put(report.use);
  out.put_all(report.trace);
  control.send(0, Tag::finish, out.take());
  return ask.last;
}

}  // namespace pipeinfer

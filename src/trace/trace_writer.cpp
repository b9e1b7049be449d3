#include "pipeinfer/trace/trace_writer.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {

namespace {

using Json = nlohmann::ordered_json;

// A part of every step, shown on a track of its own.
struct Track {
  const char* name;
  double StepTimes::*begin;
  double StepTimes::*end;
};
constexpr Track kTracks[] = {
    {"receive", &StepTimes::recv_begin_s, &StepTimes::recv_end_s},
    {"compute", &StepTimes::compute_begin_s, &StepTimes::compute_end_s},
    {"send", &StepTimes::send_begin_s, &StepTimes::send_end_s},
};

const char* kind(const StepTimes& step) {
  if (step.n_decode == step.n_tokens) return "decode";
  return step.n_decode == 0 ? "prefill" : "decode+prefill";
}

double earliest(std::span<const RankTrace> ranks) {
  double first_s = std::numeric_limits<double>::infinity();
  for (const RankTrace& rank : ranks) {
    for (const StepTimes& step : rank.steps) {
      for (const Track& track : kTracks) {
        if (step.*track.end > step.*track.begin) first_s = std::min(first_s, step.*track.begin);
      }
    }
  }
  return first_s;
}

// Whole nanoseconds, so that what was cut to fit still fits when it is read back.
int64_t nanoseconds(double seconds) { return std::llround(seconds * 1e9); }

// One event a line, so that a person can look into the file too.
class EventList {
 public:
  explicit EventList(std::ostream& out) : out_(out) {
    out_ << "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
  }
  void add(const Json& event) {
    out_ << (empty_ ? "\n" : ",\n") << event.dump(-1, ' ', false, Json::error_handler_t::replace);
    empty_ = false;
  }
  void end() { out_ << "\n]}\n"; }

 private:
  std::ostream& out_;
  bool empty_ = true;
};

void add_name(EventList& events, const char* what, int rank, int track, const std::string& name) {
  events.add({{"ph", "M"}, {"name", what}, {"pid", rank}, {"tid", track}, {"args", {{"name", name}}}});
}

void add_track(EventList& events, const RankTrace& rank, int tid, double first_s) {
  const Track& track = kTracks[tid];
  add_name(events, "thread_name", rank.rank, tid, track.name);
  int64_t free_ns = 0;  // the track's last event has ended
  for (const StepTimes& step : rank.steps) {
    if (!(step.*track.end > step.*track.begin)) continue;
    const int64_t begin_ns = std::max(free_ns, nanoseconds(step.*track.begin - first_s));
    free_ns = std::max(begin_ns, nanoseconds(step.*track.end - first_s));
    events.add(
        {{"ph", "X"},
         {"name", kind(step)},
         {"cat", track.name},
         {"pid", rank.rank},
         {"tid", tid},
         {"ts", static_cast<double>(begin_ns) / 1e3},
         {"dur", static_cast<double>(free_ns - begin_ns) / 1e3},
         {"args",
          {{"step", step.step}, {"lane", step.lane}, {"tokens", step.n_tokens}, {"decode", step.n_decode}}}});
  }
}

}  // namespace

void write_trace(const std::string& path, std::span<const RankTrace> ranks) {
  errno = 0;
  std::ofstream out(path, std::ios::trunc);
  EventList events(out);
  const double first_s = earliest(ranks);
  for (const RankTrace& rank : ranks) {
    add_name(events, "process_name", rank.rank, 0, rank.name);
    events.add({{"ph", "M"},
                {"name", "process_sort_index"},
                {"pid", rank.rank},
                {"args", {{"sort_index", rank.rank}}}});
    for (int tid = 0; tid < static_cast<int>(std::size(kTracks)); ++tid)
      add_track(events, rank, tid, first_s);
  }
  events.end();
  out.close();
  if (!out) runtime_failure(cat("cannot write ", path, ": ", std::strerror(errno)));
}

}  // namespace pipeinfer

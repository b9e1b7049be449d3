#include "pipeinfer/trace/trace_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

json written(const std::vector<RankTrace>& ranks) {
  const auto path = std::filesystem::temp_directory_path() / cat("pipeinfer_trace_", getpid(), ".json");
  write_trace(path.string(), ranks);
  std::ifstream in(path);
  json trace = json::parse(in);
  std::filesystem::remove(path);
  return trace;
}

std::vector<json> of_kind(const json& trace, const std::string& ph) {
  std::vector<json> events;
  for (const json& event : trace.at("traceEvents")) {
    if (event.at("ph") == ph) events.push_back(event);
  }
  return events;
}

// Two stages: the first computes two steps and sends them; the second receives and computes them.
std::vector<RankTrace> two_stages() {
  std::vector<RankTrace> ranks(2);
  ranks[0].name = "rank 0: layers 0-12";
  ranks[1].name = "rank 1: \"quoted\" \xff";
  ranks[1].rank = 1;
  for (int i = 0; i < 2; ++i) {
    StepTimes first;
    first.step = static_cast<uint64_t>(i);
    first.lane = i;
    first.n_tokens = i == 0 ? 9 : 4;
    first.n_decode = i == 0 ? 0 : 4;
    first.recv_begin_s = first.recv_end_s = 1;  // receives nothing
    first.compute_begin_s = 1000.5 + i;
    first.compute_end_s = first.send_begin_s = 1001.5 + i;
    first.send_end_s = 1001.75 + i;
    ranks[0].steps.push_back(first);
    StepTimes second = first;
    second.recv_begin_s = first.send_begin_s;
    second.recv_end_s = second.compute_begin_s = first.send_end_s;
    second.compute_end_s = second.send_begin_s = second.send_end_s = second.compute_begin_s + 1;
    ranks[1].steps.push_back(second);
  }
  return ranks;
}

TEST(TraceWriter, ShowsEachPartOfAStepOnItsTrack) {
  const json trace = written(two_stages());
  const std::vector<json> events = of_kind(trace, "X");
  ASSERT_EQ(events.size(), 8u) << "parts of no duration are left out";
  const json& compute = events[0];
  EXPECT_EQ(compute.at("cat"), "compute");
  EXPECT_EQ(compute.at("name"), "prefill");
  EXPECT_EQ(compute.at("pid"), 0);
  EXPECT_EQ(compute.at("ts"), 0) << "the earliest event, not the empty receive before it";
  EXPECT_EQ(compute.at("dur"), 1e6);
  EXPECT_EQ(compute.at("args"), json::parse(R"({"step": 0, "lane": 0, "tokens": 9, "decode": 0})"));
  EXPECT_EQ(events[1].at("name"), "decode");
  EXPECT_EQ(events[1].at("ts"), 1e6);
  const json& receive = events[4];
  EXPECT_EQ(receive.at("cat"), "receive");
  EXPECT_EQ(receive.at("pid"), 1);
  EXPECT_EQ(receive.at("ts"), 1e6) << "when rank 0 starts to send: one clock";
  EXPECT_EQ(receive.at("dur"), 0.25e6);
}

TEST(TraceWriter, NamesRanksAndTracks) {
  std::map<std::string, std::vector<std::string>> names;
  for (const json& event : of_kind(written(two_stages()), "M")) {
    if (event.at("args").contains("name")) names[event.at("name")].push_back(event.at("args").at("name"));
  }
  EXPECT_EQ(names["process_name"],
            (std::vector<std::string>{"rank 0: layers 0-12", "rank 1: \"quoted\" \xef\xbf\xbd"}));
  EXPECT_EQ(names["thread_name"],
            (std::vector<std::string>{"receive", "compute", "send", "receive", "compute", "send"}));
}

// Event times of a GPU jitter by microseconds; a viewer would nest, or drop, what overlaps.
TEST(TraceWriter, EventsOfATrackNeverOverlap) {
  RankTrace rank;
  uint64_t state = 1;
  double now = 123456.789;
  for (uint64_t i = 0; i < 500; ++i) {
    StepTimes times;
    times.step = i;
    times.n_tokens = 2;
    times.n_decode = 1;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    times.compute_begin_s = now - static_cast<double>(state >> 40) * 1e-12;  // up to 17 us early
    now += 11.3e-6;
    times.compute_end_s = now;
    rank.steps.push_back(times);
  }
  const json trace = written({rank});
  int64_t free_ns = 0;
  size_t n = 0;
  for (const json& event : of_kind(trace, "X")) {
    EXPECT_EQ(event.at("name"), "decode+prefill");
    const int64_t begin_ns = std::llround(event.at("ts").get<double>() * 1e3);
    EXPECT_GE(begin_ns, free_ns);
    EXPECT_GE(event.at("dur"), 0);
    free_ns = begin_ns + std::llround(event.at("dur").get<double>() * 1e3);
    ++n;
  }
  EXPECT_EQ(n, 500u);
}

TEST(TraceWriter, NothingIsATraceToo) {
  EXPECT_TRUE(written({}).at("traceEvents").empty());
  EXPECT_TRUE(of_kind(written({RankTrace{}}), "X").empty());
}

TEST(TraceWriter, SaysWhatCannotBeWritten) {
  for (const auto& [path, why] : {std::pair{"/nowhere/trace.json", "No such file or directory"},
                                  std::pair{"/dev/full", "No space left on device"}}) {
    try {
      write_trace(path, two_stages());
      FAIL() << path << " was written";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::failed);
      EXPECT_EQ(error.what(), cat("cannot write ", path, ": ", why));
    }
  }
}

}  // namespace
}  // namespace pipeinfer

#include "pipeinfer/trace/metrics_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

std::string file_path() {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  const auto path =
      std::filesystem::temp_directory_path() / cat("pipeinfer_", test->name(), "_", getpid(), ".jsonl");
  std::filesystem::remove(path);
  return path.string();
}

std::vector<json> lines_of(const std::string& path) {
  std::vector<json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}

void add_steps(StepRecorder& recorder, int n, double compute_s) {
  for (int i = 0; i < n; ++i) {
    StepTimes times;
    times.n_tokens = 8;
    times.n_decode = 3;
    times.compute_end_s = compute_s;
    recorder.add(times);
  }
}

TEST(MetricsWriter, SamplesAreOfTheTimeSinceTheLastLine) {
  const std::string path = file_path();
  StepRecorder recorder;
  MetricsWriter writer(path, recorder, Device{}, 0);
  const Figure figures[] = {{"waiting", 7}, {"free_blocks", 12.5}};
  add_steps(recorder, 4, 0.001);
  writer.tick(figures);
  recorder.clear();
  add_steps(recorder, 1, 0.005);
  writer.tick({});
  writer.tick({});
  writer.finish(figures);
  const std::vector<json> lines = lines_of(path);
  std::filesystem::remove(path);
  ASSERT_EQ(lines.size(), 4u);

  EXPECT_EQ(lines[0].at("kind"), "sample");
  EXPECT_EQ(lines[0].at("steps"), 4);
  EXPECT_EQ(lines[0].at("tokens"), 32);
  EXPECT_EQ(lines[0].at("decode_tokens"), 12);
  EXPECT_EQ(lines[0].at("waiting"), 7);
  EXPECT_EQ(lines[0].at("free_blocks"), 12.5);
  EXPECT_GT(lines[0].at("device_used_bytes"), 0);
  double before_s = 0;
  for (size_t i = 0; i < 3; ++i) {
    const double at_s = lines[i].at("at_s");
    const double passed_s = at_s - before_s;
    ASSERT_GT(passed_s, 0);
    const double tokens[] = {32, 8, 0}, compute_s[] = {0.004, 0.005, 0};
    EXPECT_NEAR(lines[i].at("tokens_per_s").get<double>() * passed_s, tokens[i], 1e-3 * tokens[i]) << i;
    EXPECT_NEAR(lines[i].at("compute_percent").get<double>() * passed_s, 100 * compute_s[i],
                0.1 * compute_s[i])
        << i;
    before_s = at_s;
  }
  EXPECT_FALSE(lines[1].contains("waiting"));

  const json& summary = lines[3];
  EXPECT_EQ(summary.at("kind"), "summary");
  EXPECT_EQ(summary.at("steps"), 5);
  EXPECT_EQ(summary.at("waiting"), 7);
  EXPECT_NEAR(summary.at("tokens_per_s").get<double>() * summary.at("at_s").get<double>(), 40, 0.04);
  EXPECT_DOUBLE_EQ(summary.at("step_ms_p50"), 1);
  EXPECT_DOUBLE_EQ(summary.at("step_ms_p90"), 5) << "steps before clear() count too";
  EXPECT_DOUBLE_EQ(summary.at("step_ms_p99"), 5);
}

TEST(MetricsWriter, KeepsItsPeriodAndAppends) {
  const std::string path = file_path();
  StepRecorder recorder;
  for (int attempt = 0; attempt < 2; ++attempt) {
    MetricsWriter writer(path, recorder, Device{}, 3600);
    for (int i = 0; i < 10; ++i) writer.tick({});
    writer.finish({});
  }
  const std::vector<json> lines = lines_of(path);
  std::filesystem::remove(path);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].at("kind"), "summary");
  EXPECT_EQ(lines[1].at("kind"), "summary");
}

std::string error_of(const std::string& path, ExitCode code) {
  StepRecorder recorder;
  try {
    MetricsWriter writer(path, recorder, Device{}, 0);
    writer.finish({});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  return "no error";
}

TEST(MetricsWriter, SaysWhatCannotBeWritten) {
  EXPECT_EQ(error_of("/nowhere/metrics.jsonl", ExitCode::usage),
            "cannot open /nowhere/metrics.jsonl for appending: No such file or directory");
  EXPECT_EQ(error_of("/dev/full", ExitCode::failed), "cannot write /dev/full: No space left on device");
}

}  // namespace
}  // namespace pipeinfer

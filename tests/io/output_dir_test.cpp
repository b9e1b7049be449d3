#include "pipeinfer/io/output_dir.h"

#include <gtest/gtest.h>

#include "io_test_util.h"
#include "pipeinfer/io/completions.h"

namespace pipeinfer {
namespace {

using test::expect_error;

class OutputDir : public testing::Test {
 protected:
  test::TestFolder folder_;
};

TEST_F(OutputDir, IsCreatedWithItsParents) {
  const std::string path = folder_.path() + "/a/b/c";
  check_output_dir(path, OutputMode::fresh);
  EXPECT_FALSE(folder_.has("a"));
  prepare_output_dir(path, OutputMode::fresh);
  EXPECT_TRUE(std::filesystem::is_directory(path));
  prepare_output_dir(path, OutputMode::fresh);  // still empty
  prepare_output_dir(path, OutputMode::resume);
}

TEST_F(OutputDir, ThatCannotBeWrittenIsAUsageError) {
  const std::string file = folder_.write("file", "");
  for (const std::string& path : {file, file + "/sub"})
    expect_error(ExitCode::usage, [&] { prepare_output_dir(path, OutputMode::fresh); },
                 {path, "is no folder"});
  expect_error(ExitCode::usage, [&] { prepare_output_dir("/proc/none/x", OutputMode::fresh); },
               {"/proc/none/x"});
  expect_error(ExitCode::usage, [&] { check_output_dir("", OutputMode::fresh); }, {"no output folder"});
}

TEST_F(OutputDir, ThatHoldsARunIsRefused) {
  folder_.write("notes.txt", "mine");
  folder_.write("rank_0.log", "could not start");
  prepare_output_dir(folder_.path(), OutputMode::fresh);
  for (const char* name :
       {"completions_rank_12.jsonl", "completions.jsonl", "manifest.json", "metrics_rank_0.jsonl",
        "summary.json", "summary.csv", "reference.jsonl", "trace.json"}) {
    folder_.write(name, "");
    expect_error(ExitCode::usage, [&] { check_output_dir(folder_.path(), OutputMode::fresh); },
                 {folder_.path(), name, "--resume", "--overwrite"});
    check_output_dir(folder_.path(), OutputMode::resume);
    remove_old_results(folder_.path());
    prepare_output_dir(folder_.path(), OutputMode::overwrite);
    EXPECT_FALSE(folder_.has(name));
    EXPECT_FALSE(folder_.has("rank_0.log"));
    EXPECT_EQ(folder_.read("notes.txt"), "mine");
  }
}

TEST_F(OutputDir, OverwritingRemovesLogsFirstAndResultsLast) {
  for (const char* name : {"rank_1.log", "metrics_rank_1.jsonl", "completions_rank_1.jsonl", "manifest.json"})
    folder_.write(name, "old");
  prepare_output_dir(folder_.path(), OutputMode::overwrite);
  EXPECT_FALSE(folder_.has("rank_1.log"));
  EXPECT_FALSE(folder_.has("metrics_rank_1.jsonl"));
  EXPECT_TRUE(folder_.has("completions_rank_1.jsonl"));
  EXPECT_TRUE(folder_.has("manifest.json"));
  folder_.write("rank_1.log", "new");
  folder_.write("metrics_rank_1.jsonl", "new");
  remove_old_results(folder_.path());
  EXPECT_TRUE(folder_.has("rank_1.log"));
  EXPECT_TRUE(folder_.has("metrics_rank_1.jsonl"));
  EXPECT_FALSE(folder_.has("completions_rank_1.jsonl"));
  EXPECT_FALSE(folder_.has("manifest.json"));
}

TEST_F(OutputDir, WriteFileReplacesTheWholeFile) {
  const std::string path = folder_.write("summary.json", "a long old text");
  write_file(path, "new");
  EXPECT_EQ(folder_.read("summary.json"), "new");
  EXPECT_FALSE(folder_.has("summary.json.tmp"));
  expect_error(ExitCode::failed, [&] { write_file(folder_.path() + "/none/x", ""); },
               {"none/x", "No such file"});
}

class ManifestTest : public OutputDir {
 protected:
  void expect_refused(const Manifest& now, const std::vector<std::string>& parts) {
    expect_error(
        ExitCode::usage, [&] { check_resumable(folder_.path(), now); }, parts);
  }
  const Manifest manifest_ = {.facts = {{"seed", "0"}, {"temperature", "0.7"}, {"config.json", "00ff"}},
                              .prompts = {1, 0xffffffffffffffff, 3}};
};

TEST_F(ManifestTest, AgreesWithItselfAndAppendedPrompts) {
  EXPECT_FALSE(check_resumable(folder_.path(), manifest_));
  EXPECT_FALSE(check_resumable(folder_.path() + "/absent", manifest_));
  write_manifest(folder_.path(), manifest_);
  EXPECT_TRUE(check_resumable(folder_.path(), manifest_));
  Manifest more = manifest_;
  more.prompts.push_back(4);
  EXPECT_TRUE(check_resumable(folder_.path(), more));
  write_manifest(folder_.path(), more);
  expect_refused(manifest_, {"the prompts file had 4 prompts and has 3"});
}

TEST_F(ManifestTest, NamesAllThatChanged) {
  write_manifest(folder_.path(), manifest_);
  Manifest now = manifest_;
  now.facts["temperature"] = "0.8";
  now.facts["config.json"] = "00fe";
  now.facts["stop"] = "[\"x\"]";
  now.prompts[1] = 2;
  expect_refused(
      now, {"cannot resume in " + folder_.path(), "temperature was 0.7 and is 0.8",
            "config.json was 00ff and is 00fe", "stop was not recorded and is [\"x\"]", "prompt 1 (from 0)"});
  now = manifest_;
  now.facts.erase("seed");
  expect_refused(now, {"seed was 0 and is not recorded"});
}

TEST_F(ManifestTest, BrokenOrMissingIsAUsageError) {
  for (const char* text :
       {"", "{", "[]", "{\"version\":1}", "{\"version\":1,\"facts\":{},\"prompts\":[\"xyz\"]}",
        "{\"version\":1,\"facts\":3,\"prompts\":[]}"}) {
    folder_.write("manifest.json", text);
    expect_refused(manifest_, {"manifest.json is no manifest"});
  }
  folder_.write("manifest.json", "{\"version\":2}");
  expect_refused(manifest_, {"manifest.json has format version 2, expected 1"});
  std::filesystem::remove(folder_.path() + "/manifest.json");
  ResultWriter writer(folder_.path(), 0);
  EXPECT_FALSE(check_resumable(folder_.path(), manifest_));  // nothing was finished
  CompletionRecord record;
  record.finish_reason = FinishReason::error;
  writer.write(record);
  expect_refused(manifest_, {"holds completions but no manifest.json"});
}

}  // namespace
}  // namespace pipeinfer

#include "pipeinfer/io/completions.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <stdexcept>

#include "io_test_util.h"

namespace pipeinfer {
namespace {

CompletionRecord record_of(int64_t index, const std::string& completion = " yes") {
  CompletionRecord record;
  record.id = "p" + std::to_string(index);
  record.prompt_index = index;
  record.variant = "2k";
  record.prompt = "Well?";
  record.completion = completion;
  record.prompt_tokens = 3;
  record.tokens_generated = 2;
  record.token_ids = {17, 2};
  record.finish_reason = FinishReason::eos;
  record.ttft_s = 0.25;
  record.latency_s = 0.5;
  record.throughput_tok_s = 4;
  return record;
}

CompletionRecord rejection_of(int64_t index) {
  CompletionRecord record;
  record.prompt_index = index;
  record.finish_reason = FinishReason::error;
  record.error = "line 2: broken JSON";
  return record;
}

TEST(CompletionRecord, Text) {
  EXPECT_EQ(
      to_json_line(record_of(5)),
      R"({"id":"p5","prompt_index":5,"variant":"2k","prompt":"Well?","completion":" yes","prompt_tokens":3,)"
      R"("tokens_generated":2,"token_ids":[17,2],"finish_reason":"eos","error":null,"ttft_s":0.25,)"
      R"("latency_s":0.5,"throughput_tok_s":4.0})");
  const std::string rejected = to_json_line(rejection_of(1));
  EXPECT_NE(rejected.find(R"("id":null)"), std::string::npos);
  EXPECT_NE(rejected.find(R"("finish_reason":"error","error":"line 2: broken JSON")"), std::string::npos);
}

TEST(CompletionRecord, ThereAndBack) {
  for (CompletionRecord record : {record_of(5, "a\n\"\\\u20ac\x01 b"), rejection_of(1)}) {
    const CompletionRecord back = completion_from_json(to_json_line(record));
    EXPECT_EQ(to_json_line(back), to_json_line(record));
    EXPECT_EQ(back.id, record.id);
    EXPECT_EQ(back.completion, record.completion);
    EXPECT_EQ(back.finish_reason, record.finish_reason);
    EXPECT_EQ(back.token_ids, record.token_ids);
    EXPECT_EQ(back.error, record.error);
  }
}

TEST(CompletionRecord, InvalidUtf8IsReplacedAndStaysOneLine) {
  const std::string line = to_json_line(record_of(0, "a\xff\n\xc3"));
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(completion_from_json(line).completion, "a\ufffd\n\ufffd");
}

TEST(CompletionRecord, RefusesOtherText) {
  for (const char* bad : {"", "{", "[]", "3", "{}", "{\"id\":3}"})
    EXPECT_THROW(completion_from_json(bad), std::invalid_argument) << bad;
  std::string other = to_json_line(record_of(0));
  other.replace(other.find("eos"), 3, "end");
  EXPECT_THROW(completion_from_json(other), std::invalid_argument);
}

class Completions : public testing::Test {
 protected:
  std::string line(int64_t index) { return to_json_line(record_of(index)) + "\n"; }
  test::TestFolder folder_;
};

TEST_F(Completions, EveryWriteIsThereAtOnce) {
  ResultWriter writer(folder_.path(), 3);
  EXPECT_EQ(folder_.read("completions_rank_3.jsonl"), "");
  EXPECT_TRUE(folder_.has("completions_rank_3.jsonl"));
  writer.write(record_of(1));
  EXPECT_EQ(folder_.read("completions_rank_3.jsonl"), line(1));
  writer.write(record_of(0));
  EXPECT_EQ(folder_.read("completions_rank_3.jsonl"), line(1) + line(0));
}

TEST_F(Completions, ContinuesAFileAndDropsItsTornLine) {
  folder_.write("completions_rank_0.jsonl", line(0) + line(1).substr(0, 50));
  ResultWriter(folder_.path(), 0).write(record_of(2));
  EXPECT_EQ(folder_.read("completions_rank_0.jsonl"), line(0) + line(2));
  folder_.write("completions_rank_1.jsonl", std::string(10000, 'x'));  // one long torn line
  ResultWriter(folder_.path(), 1).write(record_of(3));
  EXPECT_EQ(folder_.read("completions_rank_1.jsonl"), line(3));
  folder_.write("completions_rank_2.jsonl", line(0) + std::string(10000, 'x'));
  ResultWriter writer(folder_.path(), 2);
  EXPECT_EQ(folder_.read("completions_rank_2.jsonl"), line(0));
}

TEST_F(Completions, FullDiskKeepsWhatIsThere) {
  ResultWriter writer(folder_.path(), 0);
  writer.write(record_of(0));
  // A limit of file size ends a write in its middle as a full disk does.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = before;
  limit.rlim_cur = line(0).size() + 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  test::expect_error(ExitCode::failed, [&] { writer.write(record_of(1)); },
                     {"completions_rank_0.jsonl", "File too large"});
  test::expect_error(ExitCode::failed, [&] { merge_completions(folder_.path() + "/missing"); },
                     {"completions.jsonl", "No such file"});
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(folder_.read("completions_rank_0.jsonl"), line(0));
  writer.write(record_of(2));
  EXPECT_EQ(folder_.read("completions_rank_0.jsonl"), line(0) + line(2));
}

TEST_F(Completions, UnwritableFileIsAUsageError) {
  test::expect_error(ExitCode::usage, [&] { ResultWriter writer(folder_.path() + "/none", 0); },
                     {"none/completions_rank_0.jsonl", "No such file"});
}

TEST_F(Completions, MergesAllRanksInPromptOrder) {
  folder_.write("completions_rank_0.jsonl", line(4) + line(1));
  folder_.write("completions_rank_2.jsonl",
                to_json_line(rejection_of(3)) + "\n" + line(0) + line(2).substr(0, 40));
  folder_.write("completions_rank_10.jsonl", to_json_line(record_of(1, "second")) + "\n" + line(7));
  folder_.write("completions_rank_x.jsonl", "other");
  EXPECT_EQ(merge_completions(folder_.path()), 5);
  EXPECT_EQ(folder_.read("completions.jsonl"),
            line(0) + line(1) + to_json_line(rejection_of(3)) + "\n" + line(4) + line(7));
  EXPECT_FALSE(folder_.has("completions.jsonl.tmp"));

  const auto finished = read_finished(folder_.path());
  ASSERT_EQ(finished.size(), 5u);
  EXPECT_EQ(finished.at(1).id, "p1");
  EXPECT_EQ(finished.at(1).tokens_generated, 2);
  EXPECT_FALSE(finished.at(1).rejected);
  EXPECT_TRUE(finished.at(3).rejected);
  EXPECT_EQ(finished.at(3).id, std::nullopt);
}

TEST_F(Completions, MergedRecordsStayWithoutTheirRankFiles) {
  folder_.write("completions.jsonl", line(0) + to_json_line(record_of(1, "merged")) + "\n");
  folder_.write("completions_rank_0.jsonl", line(1) + line(2));
  EXPECT_EQ(read_finished(folder_.path()).size(), 3u);
  EXPECT_EQ(merge_completions(folder_.path()), 3);
  EXPECT_EQ(folder_.read("completions.jsonl"), line(0) + line(1) + line(2));
  remove_rank_files(folder_.path());
  EXPECT_FALSE(folder_.has("completions_rank_0.jsonl"));
  EXPECT_EQ(merge_completions(folder_.path()), 3);
}

TEST_F(Completions, BrokenRecordIsNamed) {
  folder_.write("completions_rank_0.jsonl", line(0) + "broken\n" + line(1));
  test::expect_error(ExitCode::usage, [&] { read_finished(folder_.path()); },
                     {"completions_rank_0.jsonl line 2 is no completion record: parse error"});
  test::expect_error(ExitCode::failed, [&] { merge_completions(folder_.path()); }, {"line 2"});
}

}  // namespace
}  // namespace pipeinfer

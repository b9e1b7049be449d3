#include "pipeinfer/io/prompts.h"

#include <gtest/gtest.h>

#include <sstream>

#include "io_test_util.h"

namespace pipeinfer {
namespace {

constexpr int64_t kVocab = 100;

std::vector<PromptRecord> read_all(const std::string& text, std::vector<std::string>* warnings = nullptr) {
  std::istringstream in(text);
  PromptReader reader(in, kVocab, [&](const std::string& warning) {
    if (warnings) warnings->push_back(warning);
  });
  std::vector<PromptRecord> records;
  while (auto record = reader.next()) records.push_back(std::move(*record));
  return records;
}

/// `line` must be rejected, with a message that holds all of `parts`; a good line behind it must be read.
void expect_rejected(const std::string& line, const std::vector<std::string>& parts) {
  const auto records = read_all(line + "\n{\"prompt\":\"good\"}\n");
  ASSERT_EQ(records.size(), 2u) << line;
  EXPECT_TRUE(records[0].error.starts_with("line 1: ")) << records[0].error;
  for (const std::string& part : parts)
    EXPECT_NE(records[0].error.find(part), std::string::npos)
        << "\"" << records[0].error << "\" lacks " << part;
  EXPECT_FALSE(records[1].rejected()) << records[1].error;
  EXPECT_EQ(records[1].prompt, "good");
}

TEST(Prompts, AllFields) {
  const auto records = read_all(
      R"({"id":"a","prompt":"Höher \u00e9\n","variant":"2k","token_budget":9,"max_new_tokens":3,"temperature":0.5,)"
      R"("top_k":7,"top_p":1,"repetition_penalty":1.1,"seed":18446744073709551615,"stop":["x","yz"],"ignore_eos":true})"
      "\n"
      R"({"prompt_token_ids":[0,99],"stop":"end","temperature":0})");
  ASSERT_EQ(records.size(), 2u);
  const PromptRecord& a = records[0];
  EXPECT_EQ(a.error, "");
  EXPECT_EQ(a.id, "a");
  EXPECT_EQ(a.prompt, "Höher é\n");
  EXPECT_EQ(a.prompt_token_ids, std::nullopt);
  EXPECT_EQ(a.variant, "2k");
  EXPECT_EQ(a.token_budget, 9);
  EXPECT_EQ(a.max_new_tokens, 3);
  EXPECT_EQ(a.temperature, 0.5f);
  EXPECT_EQ(a.top_k, 7);
  EXPECT_EQ(a.top_p, 1.0f);
  EXPECT_EQ(a.repetition_penalty, 1.1f);
  EXPECT_EQ(a.seed, UINT64_MAX);
  EXPECT_EQ(a.stop, (std::vector<std::string>{"x", "yz"}));
  EXPECT_EQ(a.ignore_eos, true);
  const PromptRecord& b = records[1];
  EXPECT_EQ(b.error, "");
  EXPECT_EQ(b.id, "line-2");
  EXPECT_EQ(b.prompt_token_ids, (std::vector<int32_t>{0, 99}));
  EXPECT_EQ(b.stop, std::vector<std::string>{"end"});
  EXPECT_EQ(b.max_new_tokens, std::nullopt);
  EXPECT_EQ(b.ignore_eos, std::nullopt);
}

TEST(Prompts, BlankLinesCrLfAndByteOrderMark) {
  const auto records = read_all("\xef\xbb\xbf\r\n  \t\r\n{\"prompt\":\"a\"}\r\n\n{\"prompt\":\"b\"}");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].prompt_index, 0);
  EXPECT_EQ(records[0].line, 3);
  EXPECT_EQ(records[0].id, "line-3");
  EXPECT_EQ(records[1].prompt_index, 1);
  EXPECT_EQ(records[1].id, "line-5");
  EXPECT_EQ(records[1].prompt, "b");
  EXPECT_FALSE(read_all("\xef\xbb\xbf{\"prompt\":\"a\"}\n")[0].rejected());
}

TEST(Prompts, UnreadableLines) {
  expect_rejected("{\"prompt\":\"a\"", {"broken JSON at byte 14"});
  expect_rejected("{\"prompt\":\"a\"} x", {"broken JSON"});
  expect_rejected("hello", {"broken JSON at byte 1"});
  expect_rejected("[1]", {"found array, expected a JSON object"});
  expect_rejected("7", {"found 7, expected a JSON object"});
  expect_rejected("{\"prompt\":\"a\xff\"}", {"byte 13 is not valid UTF-8"});
  expect_rejected("{\"prompt\":\"\\ud800\"}", {"broken JSON"});  // half a surrogate pair
  expect_rejected("{\"prompt\":\"a\",\"temperature\":1e999}", {"number is too large"});
  EXPECT_EQ(read_all("{\"id\":\"a\",")[0].id, std::nullopt);
}

TEST(Prompts, DeepNestingOverflowsNoStack) {
  const int depth = 1'000'000;
  expect_rejected("{\"id\":" + std::string(depth, '[') + std::string(depth, ']') + "}", {"id is array"});
  expect_rejected(std::string(depth, '['), {"broken JSON"});
  std::string objects;
  for (int i = 0; i < depth; ++i) objects += "{\"a\":";
  expect_rejected(objects + "1" + std::string(depth, '}'), {"no prompt"});
}

TEST(Prompts, MissingOrDoublePrompt) {
  expect_rejected("{\"id\":\"a\"}", {"no prompt"});
  expect_rejected("{\"prompt\":\"a\",\"prompt_token_ids\":[1]}", {"both prompt and prompt_token_ids"});
  expect_rejected("{\"prompt\":3}", {"prompt is 3, expected a string"});
  expect_rejected("{\"prompt\":null}", {"prompt is null, expected a string"});
}

TEST(Prompts, TokenIds) {
  expect_rejected("{\"prompt_token_ids\":[]}", {"prompt_token_ids is empty"});
  expect_rejected("{\"prompt_token_ids\":3}", {"prompt_token_ids is 3, expected a list"});
  expect_rejected("{\"prompt_token_ids\":[1,100]}", {"prompt_token_ids[1] is 100", "from 0 to 99"});
  expect_rejected("{\"prompt_token_ids\":[-1]}", {"prompt_token_ids[0] is -1", "from 0 to 99"});
  expect_rejected("{\"prompt_token_ids\":[1.0]}", {"is 1.0"});
  expect_rejected("{\"prompt_token_ids\":[18446744073709551616]}", {"expected a token id"});
  expect_rejected("{\"prompt_token_ids\":[true]}", {"is true"});
}

TEST(Prompts, WrongTypesAndRanges) {
  const auto field = [](const std::string& text, const std::vector<std::string>& parts) {
    expect_rejected("{\"prompt\":\"a\"," + text + "}", parts);
  };
  field(R"("id":7)", {"id is 7, expected a string"});
  field(R"("variant":["2k"])", {"variant is array, expected a string"});
  field(R"("max_new_tokens":0)", {"max_new_tokens is 0, expected an integer from 1"});
  field(R"("max_new_tokens":-5)", {"max_new_tokens is -5"});
  field(R"("max_new_tokens":2.5)", {"max_new_tokens is 2.5"});
  field(R"("max_new_tokens":"9")", {"max_new_tokens is string"});
  field(R"("max_new_tokens":2147483648)", {"max_new_tokens is 2147483648"});
  field(R"("token_budget":0)", {"token_budget is 0, expected an integer from 1"});
  field(R"("temperature":-0.1)", {"temperature is -0.1, expected a number of at least 0"});
  field(R"("temperature":"hot")", {"temperature is string, expected a number"});
  field(R"("temperature":1e300)", {"temperature is 1e+300"});
  field(R"("temperature":true)", {"temperature is true"});
  field(R"("top_k":-1)", {"top_k is -1, expected an integer from 0"});
  field(R"("top_p":0)", {"top_p is 0, expected a number above 0 and at most 1"});
  field(R"("top_p":1.5)", {"top_p is 1.5"});
  field(R"("top_p":1e-300)", {"top_p is 1e-300"});  // 0 as a float
  field(R"("repetition_penalty":0)", {"repetition_penalty is 0, expected a number above 0"});
  field(R"("seed":-1)", {"seed is -1, expected an integer from 0 to 18446744073709551615"});
  field(R"("seed":18446744073709551616)", {"seed is 1.8446744073709552e+19"});
  field(R"("seed":1.5)", {"seed is 1.5"});
  field(R"("stop":[1])", {"stop[0] is 1, expected a string"});
  field(R"("stop":{})", {"stop is object, expected a string or a list"});
  field(R"("stop":["a",""])", {"stop holds an empty string"});
  field(R"("ignore_eos":1)", {"ignore_eos is 1, expected true or false"});
}

TEST(Prompts, RejectedLineKeepsWhatCouldBeRead) {
  const auto records = read_all("{\"top_p\":7,\"id\":\"a\",\"prompt\":\"text\",\"variant\":\"4k\"}");
  EXPECT_EQ(records[0].id, "a");
  EXPECT_EQ(records[0].prompt, "text");
  EXPECT_EQ(records[0].variant, "4k");
}

TEST(Prompts, RepeatedIdRejectsTheLaterLine) {
  const auto records = read_all(
      "{\"id\":\"a\",\"prompt\":\"1\"}\n{\"id\":\"a\",\"prompt\":\"2\"}\n{\"prompt\":\"3\"}\n"
      "{\"id\":\"line-3\",\"prompt\":\"4\"}\n");
  EXPECT_FALSE(records[0].rejected());
  EXPECT_EQ(records[1].error, "line 2: the id \"a\" is that of an earlier line");
  EXPECT_EQ(records[1].id, "a");
  EXPECT_FALSE(records[2].rejected());
  EXPECT_TRUE(records[3].rejected());
}

TEST(Prompts, UnknownFieldWarnsOnceAName) {
  std::vector<std::string> warnings;
  const auto records = read_all(
      "{\"prompt\":\"a\",\"tempreature\":1}\n{\"prompt\":\"b\",\"tempreature\":1,\"note\":[]}\n", &warnings);
  EXPECT_FALSE(records[0].rejected() || records[1].rejected());
  EXPECT_EQ(warnings, (std::vector<std::string>{"line 1: unknown field \"tempreature\" is ignored",
                                                "line 2: unknown field \"note\" is ignored"}));
}

TEST(Prompts, HashFollowsTextAndId) {
  const auto a = read_all("{\"prompt\":\"a\"}\n{\"prompt\":\"a\"}\n");
  const auto b = read_all("{\"prompt\":\"a\"}  \r\n\n{\"prompt\":\"a\"}\n");
  EXPECT_EQ(a[0].hash, b[0].hash);
  EXPECT_NE(a[1].hash, b[1].hash);  // line-2 and line-3 sample differently
  EXPECT_NE(read_all("{\"prompt\":\"b\"}")[0].hash, a[0].hash);
}

class PromptFiles : public testing::Test {
 protected:
  PromptFile read(const std::string& path, const PromptFilter& filter = {}) {
    return read_prompts(path, kVocab, filter, [](const std::string&) {});
  }
  test::TestFolder folder_;
};

TEST_F(PromptFiles, FiltersAfterIndexing) {
  const std::string path =
      folder_.write("p.jsonl",
                    "{\"prompt\":\"0\",\"variant\":\"4k\"}\n{\"prompt\":\"1\",\"variant\":\"2k\"}\n"
                    "{\"prompt\":\"2\"}\n{\"prompt\":\"3\",\"variant\":\"2k\"}\n");
  EXPECT_EQ(read(path).prompts.size(), 4u);
  const PromptFile all = read(path, {.variant = "2k"});
  ASSERT_EQ(all.prompts.size(), 2u);
  EXPECT_EQ(all.prompts[0].prompt_index, 1);
  EXPECT_EQ(all.prompts[1].prompt_index, 3);
  EXPECT_EQ(all.hashes.size(), 4u);
  const PromptFile one = read(path, {.variant = "2k", .limit = 1});
  ASSERT_EQ(one.prompts.size(), 1u);
  EXPECT_EQ(one.prompts[0].prompt, "1");
  EXPECT_EQ(read(path, {.limit = 3}).prompts.size(), 3u);
  test::expect_error(ExitCode::usage, [&] { read(path, {.variant = "8k"}); },
                     {path, "no prompt of variant 8k"});
}

TEST_F(PromptFiles, WithoutAnyPromptIsAUsageError) {
  const std::string empty = folder_.write("empty.jsonl", "\n \r\n");
  test::expect_error(ExitCode::usage, [&] { read(empty); }, {empty, "holds no prompt"});
  const std::string missing = folder_.path() + "/missing.jsonl";
  test::expect_error(ExitCode::usage, [&] { read(missing); }, {"cannot read", missing});
  test::expect_error(ExitCode::usage, [&] { read(folder_.path()); }, {"cannot read", folder_.path()});
  EXPECT_TRUE(read(folder_.write("bad.jsonl", "{\n")).prompts[0].rejected());  // not an error of the file
}

TEST(Utf8, WellFormedAndNot) {
  for (const char* good : {"", "a", "\u00e9", "\u20ac", "\U0001f600", "\ud7ff", "\uffff", "\U0010ffff"})
    EXPECT_TRUE(is_utf8(good)) << good;
  for (const char* bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xe0\x80\x80", "\xe2\x82", "\xed\xa0\x80",
                          "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe2\x28\xa1"})
    EXPECT_FALSE(is_utf8(bad)) << testing::PrintToString(std::string(bad));
  size_t at = 0;
  EXPECT_FALSE(is_utf8("ab\xc3", &at));
  EXPECT_EQ(at, 2u);
}

}  // namespace
}  // namespace pipeinfer

#include "pipeinfer/config/run_config.h"

#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "test_folder.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

const Option& option(const std::string& key) {
  const Option* found = find_option(key);
  EXPECT_NE(found, nullptr) << key;
  return *found;
}

std::string set_refusal(const std::string& key, const std::string& word) {
  RunConfig config;
  return refusal([&] { set_option(config, option(key), {word}); });
}

TEST(RunConfig, TableIsTheSchema) {
  const std::map<std::string, std::set<std::string>> schema = {
      {"model", {"model_path", "model_name", "tokenizer_path", "precision", "quantization"}},
      {"inference",
       {"max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop", "ignore_eos",
        "batch_size"}},
      {"parallelism",
       {"pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size", "partition", "lanes"}},
      {"inputs", {"prompt_path", "variant", "limit"}},
      {"outputs", {"output_dir", "write_per_rank", "resume", "overwrite", "trace"}},
      {"runtime",
       {"device", "transport", "threads", "kv_cache_fraction", "kv_blocks", "block_size", "prefill_chunk",
        "cuda_graphs", "reference_kernels", "timeout_s", "grace_s"}},
  };
  std::map<std::string, std::set<std::string>> table;
  std::set<std::string> flags;
  for (const Option& row : options()) {
    table[row.section].insert(row.key);
    EXPECT_TRUE(flags.insert(row.flag()).second) << row.flag();
    if (!row.alias.empty()) {
      EXPECT_TRUE(flags.insert(row.alias).second) << row.alias;
    }
    EXPECT_FALSE(row.help.empty()) << row.key;
  }
  EXPECT_EQ(table, schema);
  EXPECT_EQ(option("max_new_tokens").flag(), "--max-new-tokens");
  EXPECT_EQ(option("pipeline_parallel_size").alias, "--pp");
}

TEST(RunConfig, Defaults) {
  const RunConfig config;
  const json all = json::parse(run_config_json(config));
  EXPECT_EQ(all["inference"]["temperature"], 0.0);
  EXPECT_EQ(all["inference"]["max_new_tokens"], 256);
  EXPECT_EQ(all["inference"]["batch_size"], 64);
  EXPECT_EQ(all["parallelism"]["lanes"], "auto");
  EXPECT_EQ(all["parallelism"]["partition"], "auto");
  EXPECT_EQ(all["runtime"]["timeout_s"], 60.0);
  EXPECT_EQ(all["runtime"]["grace_s"], 15.0);
  EXPECT_EQ(config.dtype(), std::nullopt);
  EXPECT_EQ(refusal([&] { check_run_config(config); }), "");
}

TEST(RunConfig, JsonRoundTripOfEveryKey) {
  const TestFolder folder;
  RunConfig changed;
  changed.model_path = "/models/a";
  changed.precision = "bf16";
  changed.temperature = 0.75;
  changed.stop = {"\n\n", "</end>"};
  changed.seed = INT64_MAX;
  changed.partition = {13, 12, 1};
  changed.lanes = 4;
  changed.output_dir = "/out";
  changed.cuda_graphs = false;
  changed.kv_cache_fraction = 0.5;
  RunConfig read;
  load_run_config(folder.write("all.json", run_config_json(changed)), read);
  for (const Option& row : options()) EXPECT_EQ(option_text(read, row), option_text(changed, row)) << row.key;
  EXPECT_EQ(read.dtype(), DType::bf16);
  EXPECT_EQ(read.name(), "a");
  EXPECT_EQ(read.tokenizer(), "/models/a");
}

TEST(RunConfig, PathsOfAFileAreItsFolders) {
  const TestFolder folder;
  const std::string file = folder.write("sub/run.json", R"({"model": {"model_path": "demo_model"},
      "inputs": {"prompt_path": "../prompts/a.jsonl"}, "outputs": {"output_dir": "/absolute"}})");
  RunConfig config;
  config.tokenizer_path = "untouched";
  load_run_config(file, config);
  EXPECT_EQ(config.model_path, folder.path() + "/sub/demo_model");
  EXPECT_EQ(config.prompt_path, folder.path() + "/prompts/a.jsonl");
  EXPECT_EQ(config.output_dir, "/absolute");
  EXPECT_EQ(config.tokenizer_path, "untouched");
  EXPECT_EQ(config.name(), "demo_model");
}

TEST(RunConfig, FileErrorsNameFileAndKey) {
  const TestFolder folder;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"inference": {"temprature": 1}})",
       "inference.temprature: unknown key, expected one of max_new_tokens, temperature, top_k"},
      {R"({"inference": {"lanes": 1}})", "inference.lanes: this key belongs to section parallelism"},
      {R"({"sampling": {}})", "sampling: unknown section, expected one of model, inference, parallelism"},
      {R"({"inference": []})", "inference: expected an object, found []"},
      {R"({"inference": {"top_p": "high"}})",
       "inference.top_p: expected a number above 0 and at most 1, found \"high\""},
      {R"({"inference": {"top_p": 0}})", "inference.top_p: expected a number above 0 and at most 1, found 0"},
      {R"({"inference": {"batch_size": 1.5}})", "batch_size: expected an integer from 1 to 65536, found 1.5"},
      {R"({"inference": {"seed": 18446744073709551615}})",
       "inference.seed: expected an integer of at least 0"},
      {R"({"inference": {"ignore_eos": 1}})", "inference.ignore_eos: expected true or false, found 1"},
      {R"({"inference": {"stop": ["a", ""]}})",
       "inference.stop: expected texts, none empty, found [\"a\",\"\"]"},
      {R"({"model": {"precision": "fp64"}})",
       "precision: expected one of auto, fp32, fp16, bf16, found \"fp64\""},
      {R"({"model": {"model_path": 3}})", "model.model_path: expected a path, found 3"},
      {R"({"parallelism": {"partition": [13, 0]}})",
       "partition: expected auto or integers such as 13,13, found [13,0]"},
      {R"({"parallelism": {"partition": []}})",
       "partition: expected auto or integers such as 13,13, found []"},
      {R"({"parallelism": {"lanes": "many"}})",
       "lanes: expected auto or an integer from 0 to 65536, found \"many\""},
      {R"({"runtime": {"block_size": 24}})", "block_size: expected one of 8, 16, 32, 64, 128, found 24"},
      {R"({"runtime": {"grace_s": null}})", "runtime.grace_s: expected a number of at least 0, found null"},
      {"nonsense", "broken JSON"},
  };
  for (const auto& [text, expected] : cases) {
    RunConfig config;
    const std::string path = folder.write("bad.json", text);
    const std::string message = refusal([&] { load_run_config(path, config); });
    EXPECT_EQ(message.find(path + ": "), 0u) << message;
    EXPECT_NE(message.find(expected), std::string::npos) << "got: " << message << "\nwanted: " << expected;
  }
  RunConfig config;
  EXPECT_EQ(refusal([&] { load_run_config("/no/such.json", config); }),
            "/no/such.json: cannot be opened: No such file or directory");
}

TEST(RunConfig, PartitionAsListAndAsText) {
  const TestFolder folder;
  for (const char* given : {"[13, 13]", "\"13,13\""}) {
    RunConfig config;
    load_run_config(folder.write("p.json", std::string(R"({"parallelism": {"partition": )") + given + "}}"),
                    config);
    EXPECT_EQ(config.partition, (std::vector<int64_t>{13, 13})) << given;
  }
}

TEST(RunConfig, WordsOfTheCommandLine) {
  RunConfig config;
  set_option(config, option("partition"), {"20,6"});
  EXPECT_EQ(config.partition, (std::vector<int64_t>{20, 6}));
  set_option(config, option("partition"), {"auto"});
  EXPECT_TRUE(config.partition.empty());
  set_option(config, option("lanes"), {"3"});
  EXPECT_EQ(config.lanes, 3);
  set_option(config, option("lanes"), {"auto"});
  EXPECT_EQ(config.lanes, 0);
  set_option(config, option("temperature"), {"1e-1"});
  EXPECT_EQ(config.temperature, 0.1);
  set_option(config, option("temperature"), {"2"});
  EXPECT_EQ(config.temperature, 2);
  set_option(config, option("stop"), {"12", "true", "a,b"});
  EXPECT_EQ(config.stop, (std::vector<std::string>{"12", "true", "a,b"}));
  set_option(config, option("cuda_graphs"), {"false"});
  EXPECT_FALSE(config.cuda_graphs);
  set_option(config, option("model_name"), {"7"});
  EXPECT_EQ(config.model_name, "7") << "a text that looks like a number stays a text";

  EXPECT_EQ(set_refusal("temperature", "hot"), "--temperature: expected a number of at least 0, found hot");
  EXPECT_EQ(set_refusal("temperature", "nan"), "--temperature: expected a number of at least 0, found nan");
  EXPECT_EQ(set_refusal("temperature", "-1"), "--temperature: expected a number of at least 0, found -1");
  EXPECT_EQ(set_refusal("max_new_tokens", "0"),
            "--max-new-tokens: expected an integer from 1 to 1000000000, found 0");
  EXPECT_EQ(set_refusal("batch_size", "4x"), "--batch-size: expected an integer from 1 to 65536, found 4x");
  EXPECT_EQ(set_refusal("seed", "99999999999999999999").find("--seed: expected an integer of at least 0"),
            0u);
  EXPECT_EQ(set_refusal("partition", "13,,13"),
            "--partition: expected auto or integers such as 13,13, found 13,,13");
  EXPECT_EQ(set_refusal("device", "tpu"), "--device: expected one of auto, cpu, cuda, found tpu");
}

TEST(RunConfig, RefusesContradictions) {
  const auto check = [](auto change) {
    RunConfig config;
    change(config);
    return refusal([&] { check_run_config(config); });
  };
  EXPECT_EQ(check([](RunConfig& c) { c.quantization = "int8"; }),
            "quantization int8 is not implemented yet: only none is");
  EXPECT_EQ(check([](RunConfig& c) { c.tensor_parallel_size = 2; }),
            "tensor_parallel_size 2 is not implemented yet: only 1 is");
  EXPECT_EQ(check([](RunConfig& c) { c.data_parallel_size = 2; }),
            "data_parallel_size 2 is not implemented yet: only 1 is");
  EXPECT_EQ(check([](RunConfig& c) {
              c.partition = {1, 2}, c.pipeline_parallel_size = 3;
            }),
            "partition names 2 stages, but pipeline_parallel_size is 3");
  EXPECT_EQ(check([](RunConfig& c) { c.resume = c.overwrite = true; }),
            "resume and overwrite contradict each other");
  EXPECT_EQ(check([](RunConfig& c) { c.device = "cpu", c.transport = "nccl"; }),
            "transport nccl needs GPUs, but device is cpu");
  EXPECT_EQ(check([](RunConfig& c) { c.partition = {1, 2}, c.pipeline_parallel_size = 2; }), "");
}

TEST(RunConfig, ManifestHasWhatChangesResults) {
  RunConfig config;
  config.seed = 7;
  std::map<std::string, std::string> found;
  for (const auto& [key, text] : result_options(config)) found[key] = text;
  EXPECT_EQ(found.at("seed"), "7");
  EXPECT_EQ(found.at("precision"), "\"auto\"");
  EXPECT_EQ(found.at("stop"), "[]");
  for (const char* may_change :
       {"lanes", "partition", "batch_size", "device", "limit", "prompt_path", "block_size"})
    EXPECT_EQ(found.count(may_change), 0u) << may_change;
  EXPECT_EQ(found.size(), 10u);
}

/// Every configuration that the project ships can be read.
TEST(RunConfig, ShippedConfigurations) {
  int read = 0;
  for (const auto& entry : std::filesystem::directory_iterator(PIPEINFER_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".json") continue;
    RunConfig config;
    EXPECT_EQ(refusal([&] { load_run_config(entry.path().string(), config), check_run_config(config); }), "");
    ++read;
  }
  EXPECT_GE(read, 2);
}

}  // namespace
}  // namespace pipeinfer

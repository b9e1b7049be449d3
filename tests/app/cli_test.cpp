#include "pipeinfer/app/cli.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

Command parse(std::vector<std::string> words) {
  words.insert(words.begin(), "pipeinfer");
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  return parse_command(static_cast<int>(argv.size()), argv.data(), "1.2.3");
}

/// With what every run needs.
Command run(std::vector<std::string> words) {
  words.insert(words.begin(), {"run", "--model", "m", "--prompts", "p.jsonl"});
  return parse(words);
}

std::string refusal(const std::vector<std::string>& words) {
  try {
    parse(words);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::usage) << e.what();
    return e.what();
  }
  return "";
}

std::string run_refusal(std::vector<std::string> words) {
  words.insert(words.begin(), {"run", "--model", "m", "--prompts", "p.jsonl"});
  return refusal(words);
}

std::string write_config(const std::string& text) {
  const auto path = std::filesystem::path(testing::TempDir()) /
                    (std::string("pipeinfer_cli_") +
                     testing::UnitTest::GetInstance()->current_test_info()->name() + ".json");
  std::ofstream(path) << text;
  return path.string();
}

/// A value of an option other than its default.
std::string other_value(const Option& option) {
  if (!option.choices.empty())
    return option.choices.back() == "128" ? "128"
           : option.key == "quantization" ? "int8"
                                          : option.choices.back();
  if (std::holds_alternative<std::vector<int64_t> RunConfig::*>(option.member)) return "3,4";
  if (std::holds_alternative<int64_t RunConfig::*>(option.member)) return "7";
  if (std::holds_alternative<double RunConfig::*>(option.member)) return "0.5";
  return "word";
}

/// Every key has an option of its name (and its short name) in every subcommand, and it sets that key only.
TEST(Cli, EveryKeyHasItsOption) {
  for (const Option& option : options()) {
    const bool flag = std::holds_alternative<bool RunConfig::*>(option.member);
    const bool on = option_text(RunConfig{}, option) == "true";
    for (const std::string& name : {option.flag(), option.alias}) {
      if (name.empty()) continue;
      std::vector<std::string> words = {"run", "--model", "m", "--prompts", "p", "--output-dir", "o"};
      if (flag)
        words.push_back(on ? "--no-" + name.substr(2) : name);
      else
        words.insert(words.end(), {name, other_value(option)});
      if (option.key == "quantization" || option.key.starts_with("tensor") ||
          option.key.starts_with("data")) {
        EXPECT_NE(refusal(words).find(option.key + " " + words.back() + " is not implemented yet"),
                  std::string::npos);
        continue;
      }
      const RunConfig config = parse(words).config;
      RunConfig plain;
      plain.model_path = "m", plain.prompt_path = "p", plain.output_dir = "o";
      for (const Option& other : options()) {
        const bool same = option_text(config, other) == option_text(plain, other);
        EXPECT_EQ(same, other.key != option.key) << name << " and " << other.key;
      }
    }
  }
}

/// And every option that the help names is a key's, or one of the few that DESIGN lists without one.
TEST(Cli, EveryOptionHasItsKeyAndHelp) {
  for (const char* subcommand : {"run", "bench", "describe"}) {
    const std::string help = parse({subcommand, "--help"}).text;
    for (const Option& option : options()) {
      EXPECT_NE(help.find(option.flag()), std::string::npos) << option.key;
      EXPECT_NE(help.find(option.help), std::string::npos) << option.key;
    }
    std::vector<std::string> known = {"--help",       "--config",        "--prompt", "--local-debug",
                                      "--dry-run",    "--json",          "--shape",  "--prompt-tokens",
                                      "--new-tokens", "--no-cuda-graphs"};
    for (const Option& option : options()) {
      known.insert(known.end(), {option.flag(), option.alias, "--no-" + option.flag().substr(2)});
    }
    for (size_t at = help.find("\n  -"); at != help.npos; at = help.find("\n  -", at + 1)) {
      const size_t begin = help.find("--", at);
      const std::string name = help.substr(begin, help.find_first_of(" ,\n", begin) - begin);
      EXPECT_NE(std::find(known.begin(), known.end(), name), known.end()) << subcommand << " " << name;
    }
  }
}

TEST(Cli, HelpAndVersion) {
  EXPECT_EQ(parse({"--version"}).text, "pipeinfer 1.2.3\n");
  const Command help = parse({"--help"});
  EXPECT_EQ(help.subcommand, Subcommand::help);
  for (const char* word : {"run", "bench", "describe", "Exit codes"})
    EXPECT_NE(help.text.find(word), std::string::npos);
  const std::string run_help = parse({"run", "--help"}).text;
  EXPECT_NE(run_help.find("--cuda-graphs, --no-cuda-graphs"), std::string::npos) << run_help;
  EXPECT_NE(run_help.find("most new tokens of a completion [256]"), std::string::npos);
  EXPECT_NE(run_help.find("--device auto|cpu|cuda"), std::string::npos);
  EXPECT_EQ(parse({"run", "--model", "m", "--help"}).subcommand, Subcommand::help);
}

TEST(Cli, OptionsOverrideTheFile) {
  const std::string file =
      write_config(R"({"model": {"model_path": "demo"}, "inputs": {"prompt_path": "p.jsonl"},
      "inference": {"temperature": 0.5, "stop": ["a"], "seed": 3}, "outputs": {"resume": true}})");
  const RunConfig config =
      parse({"run", "--config", file, "--temperature", "1", "--no-resume", "--stop", "x", "--stop", "y"})
          .config;
  EXPECT_EQ(config.model_path, std::filesystem::path(file).parent_path() / "demo");
  EXPECT_EQ(config.temperature, 1);
  EXPECT_EQ(config.seed, 3);
  EXPECT_FALSE(config.resume);
  EXPECT_EQ(config.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(run({"--seed", "1", "--seed", "2"}).config.seed, 2)
      << "wrapper scripts append the user's options";
  EXPECT_EQ(refusal({"run", "--config", "/no/such.json"}),
            "/no/such.json: cannot be opened: No such file or directory");
  EXPECT_NE(refusal({"run", "--config", write_config(R"({"model": {"path": "m"}})")})
                .find("model.path: unknown key"),
            std::string::npos);
}

TEST(Cli, TextsStayWhatTheyAre) {
  EXPECT_EQ(run({"--stop", "[INST, a]", "--stop", "a,b"}).config.stop,
            (std::vector<std::string>{"[INST, a]", "a,b"}));
  EXPECT_EQ(*parse({"run", "--model", "m", "--prompt", "[1,2] "}).prompt, "[1,2] ");
  EXPECT_EQ(*parse({"run", "--model", "m", "--prompt", ""}).prompt, "");
  EXPECT_EQ(*parse({"run", "--model", "m", "--prompt", "-1 is"}).prompt, "-1 is");
  EXPECT_EQ(*parse({"run", "--model=m", "--prompt=a=b"}).prompt, "a=b");
  EXPECT_EQ(run({"--stop", "7"}).config.max_new_tokens, 256);
}

TEST(Cli, ShortNamesAndAuto) {
  const RunConfig config = run({"--pp", "2", "--partition", "3,3", "--lanes", "auto", "--dtype", "fp32",
                                "--tokenizer", "t", "--kv-blocks", "9", "--threads", "auto"})
                               .config;
  EXPECT_EQ(config.pipeline_parallel_size, 2);
  EXPECT_EQ(config.partition, (std::vector<int64_t>{3, 3}));
  EXPECT_EQ(config.lanes, 0);
  EXPECT_EQ(config.dtype(), DType::fp32);
  EXPECT_EQ(config.tokenizer(), "t");
  EXPECT_EQ(config.kv_blocks, 9);
}

TEST(Cli, OutputFolder) {
  EXPECT_EQ(run({}).config.output_dir, "output");
  EXPECT_EQ(run({"--output-dir", "x"}).config.output_dir, "x");
  EXPECT_EQ(parse({"run", "--model", "m", "--prompt", "t"}).config.output_dir, "") << "only prints";
  EXPECT_EQ(parse({"run", "--model", "m", "--prompt", "t", "--local-debug"}).config.output_dir, "output");
}

TEST(Cli, PromptInsteadOfAFile) {
  const std::string file =
      write_config(R"({"model": {"model_path": "m"}, "inputs": {"prompt_path": "p.jsonl"}})");
  const Command command = parse({"run", "--config", file, "--prompt", "Hello"});
  EXPECT_EQ(command.config.prompt_path, "");
  EXPECT_EQ(*command.prompt, "Hello");
  EXPECT_EQ(run_refusal({"--prompt", "Hello"}), "--prompt and --prompts contradict each other");
}

TEST(Cli, LocalDebugIsGreedy) {
  const std::string file = write_config(R"({"inference": {"temperature": 0.7}})");
  const Command command = run({"--config", file, "--local-debug", "--dry-run"});
  EXPECT_TRUE(command.local_debug && command.dry_run);
  EXPECT_EQ(command.config.temperature, 0);
  EXPECT_EQ(run_refusal({"--local-debug", "--temperature", "1"}),
            "--local-debug is greedy, but --temperature is 1");
  EXPECT_EQ(run_refusal({"--local-debug", "--pp", "2"}),
            "--local-debug is one process, but pipeline_parallel_size is 2");
}

TEST(Cli, Bench) {
  const Command command = parse({"bench", "--shape", "openllama-3b", "--batch-size", "1,64,8",
                                 "--prompt-tokens", "128", "--new-tokens", "16,32", "--json", "out.jsonl"});
  EXPECT_EQ(command.subcommand, Subcommand::bench);
  EXPECT_EQ(command.shape, "openllama-3b");
  EXPECT_EQ(command.batch_sizes, (std::vector<int64_t>{1, 64, 8}));
  EXPECT_EQ(command.config.batch_size, 64);
  EXPECT_EQ(command.prompt_tokens, (std::vector<int64_t>{128}));
  EXPECT_EQ(command.new_tokens, (std::vector<int64_t>{16, 32}));
  EXPECT_EQ(command.json_file, "out.jsonl");
  EXPECT_EQ(parse({"bench", "--model", "m"}).batch_sizes, (std::vector<int64_t>{64}));
  EXPECT_EQ(refusal({"bench"}), "bench needs a model: --shape NAME, or --model FOLDER");
  EXPECT_EQ(refusal({"bench", "--shape", "tiny", "--model", "m"}),
            "--shape and --model contradict each other");
  EXPECT_EQ(refusal({"bench", "--shape", "gpt"}).find("unknown model shape gpt: expected one of"), 0u);
  EXPECT_EQ(refusal({"bench", "--shape", "tiny", "--batch-size", "1,x"}),
            "--batch-size: expected integers from 1 to 16777216 such as 1,8,64, found 1,x");
  EXPECT_EQ(refusal({"bench", "--shape", "tiny", "--new-tokens", "0"}),
            "--new-tokens: expected integers from 1 to 16777216 such as 1,8,64, found 0");
}

TEST(Cli, Describe) {
  const Command command = parse({"describe", "--model", "m", "--pp", "4", "--json"});
  EXPECT_EQ(command.subcommand, Subcommand::describe);
  EXPECT_TRUE(command.json);
  EXPECT_EQ(refusal({"describe"}), "describe needs a model: --model FOLDER, or model_path in --config FILE");
}

TEST(Cli, UsageErrorsAreOneSentence) {
  EXPECT_EQ(refusal({}), "expected a subcommand: run, bench, describe or doctor (see pipeinfer --help)");
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"frobnicate"}, "frobnicate"},
      {{"run", "--frobnicate", "1"}, "--frobnicate"},
      {{"run", "--model"}, "--model"},
      {{"run", "--model", "m"}, "run needs prompts: --prompts FILE"},
      {{"run", "--prompts", "p"}, "run needs a model: --model FOLDER"},
      {{"run", "--model", "m", "--prompts", "p", "--lanes", "x"}, "--lanes: expected auto or an integer"},
      {{"run", "--model", "m", "--prompts", "p", "--temperature", "-1"}, "--temperature: expected a number"},
      {{"run", "--model", "m", "--prompts", "p", "--batch-size", "1,8"}, "--batch-size: expected an integer"},
      {{"run", "--model", "m", "--prompts", "p", "--resume", "--overwrite"},
       "resume and overwrite contradict"},
      {{"run", "--model", "m", "--prompts", "p", "surplus"}, "surplus"},
      {{"run", "--model", "m", "--prompts", "p", "--resume=maybe"},
       "--resume: expected true or false, found maybe"},
      {{"run", "--shape", "tiny"}, "--shape"},
  };
  for (const auto& [words, expected] : cases) {
    const std::string message = refusal(words);
    EXPECT_NE(message.find(expected), std::string::npos) << "got: " << message << "\nwanted: " << expected;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace pipeinfer

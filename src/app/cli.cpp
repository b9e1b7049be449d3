#include "pipeinfer/app/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <memory>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/config/model_config.h"

namespace pipeinfer {
namespace {

constexpr const char* kDefaultOutput = "output";

bool is_flag(const Option& option) { return std::holds_alternative<bool RunConfig::*>(option.member); }
bool is_list_of_texts(const Option& option) {
  return std::holds_alternative<std::vector<std::string> RunConfig::*>(option.member);
}

/// "--cuda-graphs, --no-cuda-graphs", without CLI11's notes on values.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_name(const CLI::Option* option, bool positional) const override {
    if (positional) return CLI::Formatter::make_option_name(option, positional);
    std::string names;
    for (const std::string& name : option->get_snames()) names += cat(names.empty() ? "" : ", ", "-", name);
    for (const std::string& name : option->get_lnames()) names += cat(names.empty() ? "" : ", ", "--", name);
    return names;
  }
};

/// What the help shows behind an option's name.
std::string value_name(const Option& option) {
  std::string name;
  for (const std::string& choice : option.choices) name += cat(name.empty() ? "" : "|", choice);
  if (!name.empty()) return name;
  name = option.is_path ? "PATH" : "TEXT";
  if (std::holds_alternative<int64_t RunConfig::*>(option.member)) name = "N";
  if (std::holds_alternative<double RunConfig::*>(option.member)) name = "X";
  if (std::holds_alternative<std::vector<int64_t> RunConfig::*>(option.member)) name = "N,N,...";
  return option.or_auto ? "auto|" + name : name;
}

/// The help of an option, with its default where there is one.
std::string help_text(const Option& option) {
  std::string value = option_text(RunConfig{}, option);
  value.erase(std::remove(value.begin(), value.end(), '"'), value.end());
  if (is_flag(option)) value = value == "true" ? "on" : "off";
  return value.empty() || value == "[]" ? option.help : cat(option.help, " [", value, "]");
}

std::string title(std::string section) {
  section[0] = static_cast<char>(std::toupper(section[0]));
  return section;
}

/// One subcommand: where CLI11 leaves the words of each option.
struct Parsed {
  CLI::App* app = nullptr;
  std::string config_file;
  std::map<std::string, std::vector<std::string>> words;  ///< by key; only what was given
};

void add_table(Parsed& parsed) {
  for (const Option& option : options()) {
    // CLI11 writes through the reference before `collect` looks at it.
    std::vector<std::string>& words = parsed.words[option.key];
    CLI::Option* added = nullptr;
    if (is_flag(option)) {
      const std::string name = option.flag().substr(2);
      added = parsed.app->add_flag(cat("--", name, ",!--no-", name), words, help_text(option));
      added->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    } else {
      const std::string names = option.alias.empty() ? option.flag() : option.alias + "," + option.flag();
      added = parsed.app->add_option(names, words, help_text(option))
                  ->option_text(value_name(option))
                  ->type_name("value");
      // One value each (a list as one word), so that brackets and further words stay what they are.
      added->expected(1)->allow_extra_args(false);
      added->multi_option_policy(is_list_of_texts(option) ? CLI::MultiOptionPolicy::TakeAll
                                                          : CLI::MultiOptionPolicy::TakeLast);
    }
    added->group(title(option.section));
  }
}

CLI::Option* add_text(CLI::App* app, const std::string& name, std::string& value, const std::string& shown,
                      const std::string& help) {
  return app->add_option(name, value, help)
      ->option_text(shown)
      ->type_name("value")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

/// Numbers of a sweep, "1,8,64".
std::vector<int64_t> sweep(const std::string& flag, const std::string& text) {
  std::vector<int64_t> list;
  for (const std::string& word : CLI::detail::split(text, ',')) {
    constexpr int64_t kMost = 1 << 24;
    const char* end = word.data() + word.size();
    int64_t number = 0;
    const auto [rest, error] = std::from_chars(word.data(), end, number);
    if (error != std::errc{} || rest != end || number < 1 || number > kMost)
      usage_error(cat(flag, ": expected integers from 1 to ", kMost, " such as 1,8,64, found ", text));
    list.push_back(number);
  }
  return list;
}

/// Defaults, file, options. Returns whether the option of a key was given.
class Settings {
 public:
  Settings(const Parsed& parsed, RunConfig& config) : parsed_(parsed) {
    if (!parsed.config_file.empty()) load_run_config(parsed.config_file, config);
    for (const Option& option : options())
      if (given(option.key)) set_option(config, option, words(option.key));
  }
  bool given(const std::string& key) const { return !words(key).empty(); }

 private:
  const std::vector<std::string>& words(const std::string& key) const { return parsed_.words.at(key); }
  const Parsed& parsed_;
};

void finish_run(Command& command, const Settings& settings) {
  RunConfig& config = command.config;
  if (config.model_path.empty())
    usage_error("run needs a model: --model FOLDER, or model_path in --config FILE");
  if (command.prompt && settings.given("prompt_path"))
    usage_error("--prompt and --prompts contradict each other");
  if (command.prompt) config.prompt_path.clear();
  if (!command.prompt && config.prompt_path.empty())
    usage_error("run needs prompts: --prompts FILE, --prompt TEXT, or prompt_path in --config FILE");
  if (command.local_debug) {
    if (settings.given("temperature") && config.temperature > 0)
      usage_error(cat("--local-debug is greedy, but --temperature is ", config.temperature));
    if (config.pipeline_parallel_size > 1)
      usage_error(
          cat("--local-debug is one process, but pipeline_parallel_size is ", config.pipeline_parallel_size));
    config.temperature = 0;
  }
  if (config.output_dir.empty() && (!command.prompt || command.local_debug))
    config.output_dir = kDefaultOutput;
}

void finish_bench(Command& command, const Settings& settings) {
  RunConfig& config = command.config;
  if (!command.shape.empty()) {
    if (settings.given("model_path")) usage_error("--shape and --model contradict each other");
    model_shape(command.shape);
    config.model_path.clear();
  } else if (config.model_path.empty()) {
    usage_error("bench needs a model: --shape NAME, or --model FOLDER");
  }
  if (command.batch_sizes.empty()) command.batch_sizes = {config.batch_size};
  config.batch_size = *std::max_element(command.batch_sizes.begin(), command.batch_sizes.end());
}

/// What is wrong with the configuration is a finding.
void read_doctor(Command& command, Parsed& parsed) {
  const auto attempt = [&](const auto& step) {
    try {
      step();
    } catch (const Error& e) {
      command.config_errors.push_back(e.what());
    }
  };
  command.config_file = std::move(parsed.config_file);
  parsed.config_file.clear();
  if (!command.config_file.empty()) attempt([&] { load_run_config(command.config_file, command.config); });
  Settings(parsed, command.config);
  attempt([&] { check_run_config(command.config); });
}

}  // namespace

Command parse_command(int argc, const char* const* argv, const std::string& version) {
  Command command;
  CLI::App app("Runs LlamaForCausalLM checkpoints over the ranks of an MPI job.", "pipeinfer");
  const auto formatter = std::make_shared<HelpFormatter>();
  formatter->column_width(46);
  app.formatter(formatter);
  app.set_version_flag("--version", "pipeinfer " + version);
  app.require_subcommand(0, 1);
  app.footer(
      "pipeinfer SUBCOMMAND --help shows its options; each option of a section is a key of --config's file, "
      "too.\n"
      "Exit codes: 0 done, 1 failed while running, 2 could not start as asked, 3 some prompts rejected, 75 "
      "stopped.");

  Parsed run, bench, describe, doctor;
  run.app = app.add_subcommand("run", "Generate completions for a prompts file");
  bench.app = app.add_subcommand("bench", "Synthetic load: prompt and new token counts, batch sizes");
  describe.app = app.add_subcommand("describe", "Stages, bytes per rank, KV capacity; needs no GPU");
  doctor.app = app.add_subcommand("doctor", "Is this node, or job, fit to run? One line a finding");
  for (Parsed* parsed : {&run, &bench, &describe, &doctor})
    add_text(parsed->app, "--config", parsed->config_file, "FILE",
             "JSON file with the keys below; options override it");

  std::string prompt, batch_sizes, prompt_tokens = "128", new_tokens = "128";
  CLI::Option* prompt_option = add_text(run.app, "--prompt", prompt, "TEXT",
                                        "one prompt, instead of a file; prints its tokens as they come");
  run.app->add_flag("--local-debug", command.local_debug,
                    "one process, no MPI launcher, greedy; writes reference.jsonl");
  run.app->add_flag("--dry-run", command.dry_run, "check everything, run nothing");
  add_text(bench.app, "--shape", command.shape, "NAME",
           "make the weights up: " + CLI::detail::join(model_shape_names(), ", "));
  add_text(bench.app, "--prompt-tokens", prompt_tokens, "N,N,...", "prompt tokens of a sequence [128]");
  add_text(bench.app, "--new-tokens", new_tokens, "N,N,...", "new tokens of a sequence [128]");
  add_text(bench.app, "--json", command.json_file, "FILE", "write one JSON object a line, one a measurement");
  for (Parsed* parsed : {&describe, &doctor}) parsed->app->add_flag("--json", command.json, "print JSON");
  for (Parsed* parsed : {&run, &bench, &describe, &doctor}) add_table(*parsed);
  CLI::Option* bench_batch = bench.app->get_option("--batch-size")->option_text("N,N,...");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    command.text = app.help();
    return command;
  } catch (const CLI::CallForVersion& call) {
    command.text = std::string(call.what()) + "\n";
    return command;
  } catch (const CLI::ParseError& e) {
    std::string what = e.what();
    while (what.ends_with('\n')) what.pop_back();
    usage_error(cat(what, " (see pipeinfer --help)"));
  }
  if (app.get_subcommands().empty())
    usage_error("expected a subcommand: run, bench, describe or doctor (see pipeinfer --help)");

  if (*run.app) {
    command.subcommand = Subcommand::run;
    if (*prompt_option) command.prompt = prompt;
    finish_run(command, Settings(run, command.config));
  } else if (*bench.app) {
    command.subcommand = Subcommand::bench;
    if (*bench_batch) {
      command.batch_sizes = sweep("--batch-size", bench.words["batch_size"].back());
      bench.words["batch_size"].clear();
    }
    command.prompt_tokens = sweep("--prompt-tokens", prompt_tokens);
    command.new_tokens = sweep("--new-tokens", new_tokens);
    finish_bench(command, Settings(bench, command.config));
  } else if (*doctor.app) {
    command.subcommand = Subcommand::doctor;
    read_doctor(command, doctor);
    return command;
  } else {
    command.subcommand = Subcommand::describe;
    Settings(describe, command.config);
    if (command.config.model_path.empty())
      usage_error("describe needs a model: --model FOLDER, or model_path in --config FILE");
  }
  check_run_config(command.config);
  return command;
}

}  // namespace pipeinfer

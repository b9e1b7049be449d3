// The command line: subcommands, the options of config/run_config.h's table, and the few without a config
// key.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pipeinfer/config/run_config.h"

namespace pipeinfer {

enum class Subcommand { help, run, bench, describe, doctor };

struct Command {
  Subcommand subcommand = Subcommand::help;
  std::string text;  ///< help: what to print (--help, --version); exit code 0
  RunConfig config;  ///< defaults, then the file of --config, then the options

  // run
  std::optional<std::string> prompt;  ///< --prompt TEXT, instead of a file; may be empty
  bool local_debug = false;           ///< one process, greedy, writes reference.jsonl
  bool dry_run = false;               ///< check all, run nothing

  // doctor
  std::string config_file;                 ///< --config FILE; empty: none
  std::vector<std::string> config_errors;  ///< what is wrong with the configuration; all that is right holds

  // describe, doctor
  bool json = false;  ///< as JSON on stdout

  // bench
  std::string shape;      ///< made-up weights of this shape; empty: config.model_path
  std::string json_file;  ///< one object a line; empty: none
  std::vector<int64_t> batch_sizes, prompt_tokens, new_tokens;  ///< not empty; lists sweep
};

/// Reads a command line; `argv[0]` is the program, `version` what --version shows. Throws Error(usage), one
/// sentence, for unknown options, values of a wrong type or range, contradictions, and a missing model or
/// prompt. For `run` with a prompts file or --local-debug, output_dir is never empty.
Command parse_command(int argc, const char* const* argv, const std::string& version);

}  // namespace pipeinfer

// How to run: every key of configs/*.json and every command-line option that has one, from one table.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "pipeinfer/base/types.h"

namespace pipeinfer {

/// Member names are the keys. Where 0 or an empty text stands for "auto" or "not given", the comment says so.
struct RunConfig {
  // model
  std::string model_path;      ///< folder of config.json and the safetensors
  std::string model_name;      ///< for reports; empty: the folder's name (see `name`)
  std::string tokenizer_path;  ///< folder or tokenizer.model; empty: model_path
  std::string precision = "auto";
  std::string quantization = "none";

  // inference
  int64_t max_new_tokens = 256;
  double temperature = 0;  ///< 0: greedy
  int64_t top_k = 0;       ///< 0: all
  double top_p = 1;
  double repetition_penalty = 1;
  int64_t seed = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  int64_t batch_size = 64;  ///< most sequences in flight

  // parallelism
  int64_t pipeline_parallel_size = 0;  ///< 0: the number of ranks
  int64_t tensor_parallel_size = 1;
  int64_t data_parallel_size = 1;
  std::vector<int64_t> partition;  ///< layers of each stage; empty: auto
  int64_t lanes = 0;               ///< 0: auto

  // inputs
  std::string prompt_path;
  std::string variant;  ///< empty: all
  int64_t limit = 0;    ///< 0: all

  // outputs
  std::string output_dir;
  bool write_per_rank = true;
  bool resume = false;
  bool overwrite = false;
  bool trace = false;

  // runtime
  std::string device = "auto";
  std::string transport = "auto";
  int64_t threads = 0;  ///< 0: the cores bound to the rank over the ranks that share them
  double kv_cache_fraction = 0.9;
  int64_t kv_blocks = 0;  ///< usable by sequences, a stage; 0: the memory's share
  int64_t block_size = 16;
  int64_t prefill_chunk = 0;  // 0: auto
  bool cuda_graphs = true;
  bool reference_kernels = false;
  double timeout_s = 60;
  double grace_s = 15;

  /// The precision asked for; nothing: auto.
  std::optional<DType> dtype() const;
  /// model_name, or the last part of model_path.
  std::string name() const;
  /// tokenizer_path, or model_path.
  const std::string& tokenizer() const { return tokenizer_path.empty() ? model_path : tokenizer_path; }
};

/// Where an option's value lives; the alternative is its type.
using OptionMember =
    std::variant<bool RunConfig::*, int64_t RunConfig::*, double RunConfig::*, std::string RunConfig::*,
                 std::vector<std::string> RunConfig::*, std::vector<int64_t> RunConfig::*>;

/// One row of the table: a key of the JSON schema and the command-line option of its name.
struct Option {
  std::string section;  ///< "inference"
  std::string key;      ///< "max_new_tokens"; unique over all sections
  OptionMember member;
  std::string help;
  std::string alias = {};                 ///< a shorter option name ("--pp"), or nothing
  std::vector<std::string> choices = {};  ///< of a text; empty: any
  double min = 0;                         ///< of a number
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;  ///< min itself is not allowed
  bool or_auto = false;    ///< "auto" is allowed, and is 0 or the empty list
  bool is_path =
      false;  ///< relative to the config file's folder in a file, to the user's on the command line
  bool changes_result = false;  ///< a resumed run must agree on it

  std::string flag() const;      ///< "--max-new-tokens"
  std::string expected() const;  ///< "an integer of at least 1"
};

/// The table, in the order of the schema.
const std::vector<Option>& options();

/// The option of a key, or null.
const Option* find_option(const std::string& key);

/// Sets a value from the words given on the command line (one, or several for `stop`; "true" or "false" for a
/// flag). Throws Error(usage): "--top-p: expected ..., found ...".
void set_option(RunConfig& config, const Option& option, const std::vector<std::string>& words);

/// A value as JSON text: `0.9`, `"auto"`, `[13,13]`.
std::string option_text(const RunConfig& config, const Option& option);

/// Reads a file over the values in `config`. Throws Error(usage) that names file and key (unknown keys, wrong
/// types): the first one, once everything that is right is in `config`.
void load_run_config(const std::string& path, RunConfig& config);

/// The whole configuration as a JSON object of the schema (one line).
std::string run_config_json(const RunConfig& config);

/// Refuses, by name, contradictions between keys and what is not implemented. Throws Error(usage).
void check_run_config(const RunConfig& config);

/// (key, JSON text) of every option that changes results, for the manifest.
std::vector<std::pair<std::string, std::string>> result_options(const RunConfig& config);

}  // namespace pipeinfer

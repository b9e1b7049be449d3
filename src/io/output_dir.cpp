#include "pipeinfer/io/output_dir.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "run_files.h"

namespace pipeinfer {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 6> kNames = {"completions.jsonl", "manifest.json", "reference.jsonl",
                                                    "summary.csv",       "summary.json",  "trace.json"};

bool is_log(std::string_view name) { return rank_in_name(name, "rank_", ".log").has_value(); }

bool is_log_or_metrics(std::string_view name) {
  return is_log(name) || rank_in_name(name, "metrics_rank_", ".jsonl");
}

bool is_run_file(std::string_view name) {
  if (name.ends_with(".tmp")) name.remove_suffix(4);  // left by a killed job
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() || is_log_or_metrics(name) ||
         rank_in_name(name, "completions_rank_", ".jsonl");
}

/// Files of a run in the folder, sorted; none where there is no folder.
std::vector<fs::path> run_files(const std::string& output_dir) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(output_dir, error))
    if (is_run_file(entry.path().filename().string())) found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  return found;
}

void remove_run_files(const std::string& output_dir, bool logs_and_metrics) {
  std::error_code error;
  for (const fs::path& file : run_files(output_dir))
    if (is_log_or_metrics(file.filename().string()) == logs_and_metrics && !fs::remove(file, error))
      usage_error(cat("cannot remove ", file.string(), ": ", error.message()));
}

}  // namespace

std::optional<int> rank_in_name(std::string_view name, std::string_view prefix, std::string_view suffix) {
  if (name.size() <= prefix.size() + suffix.size() || !name.starts_with(prefix) || !name.ends_with(suffix))
    return {};
  const std::string_view digits = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
  int rank = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
  if (error != std::errc() || end != digits.data() + digits.size() || rank < 0) return {};
  return rank;
}

void check_output_dir(const std::string& output_dir, OutputMode mode) {
  if (output_dir.empty()) usage_error("no output folder is given: --output-dir");
  fs::path existing = fs::absolute(output_dir);
  while (!fs::exists(existing) && existing.has_relative_path()) existing = existing.parent_path();
  if (!fs::is_directory(existing))
    usage_error(cat("cannot write the output folder ", output_dir, ": ", existing.string(), " is no folder"));
  if (access(existing.c_str(), W_OK | X_OK) != 0)
    usage_error(cat("cannot write the output folder ", output_dir, ": ", existing.string(), ": ",
                    std::strerror(errno)));
  if (mode != OutputMode::fresh) return;
  // A log alone is what a run leaves that could not start: no reason to refuse the next try.
  for (const fs::path& file : run_files(output_dir))
    if (!is_log(file.filename().string()))
      usage_error(cat("the output folder ", output_dir, " already holds a run (", file.filename().string(),
                      "): continue it with --resume or replace it with --overwrite"));
}

void prepare_output_dir(const std::string& output_dir, OutputMode mode) {
  check_output_dir(output_dir, mode);
  std::error_code error;
  fs::create_directories(output_dir, error);
  if (error) usage_error(cat("cannot create the output folder ", output_dir, ": ", error.message()));
  if (mode == OutputMode::overwrite) remove_run_files(output_dir, true);
}

void remove_old_results(const std::string& output_dir) { remove_run_files(output_dir, false); }

}  // namespace pipeinfer

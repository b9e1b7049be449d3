#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <stdexcept>

#include "atomic_file.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/io/completions.h"
#include "run_files.h"

namespace pipeinfer {
namespace {

namespace fs = std::filesystem;

std::string merged_file(const std::string& output_dir) { return output_dir + "/completions.jsonl"; }

/// The completions_rank_*.jsonl of a folder, by rank.
std::vector<std::string> rank_files(const std::string& output_dir) {
  std::map<int, std::string> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(output_dir, error))
    if (const auto rank = rank_in_name(entry.path().filename().string(), "completions_rank_", ".jsonl"))
      files.emplace(*rank, entry.path());
  std::vector<std::string> paths;
  for (const auto& [rank, path] : files) paths.push_back(path);
  return paths;
}

/// And completions.jsonl where there is one: without write_per_rank it is all that an earlier attempt leaves.
std::vector<std::string> record_files(const std::string& output_dir) {
  std::vector<std::string> paths = rank_files(output_dir);
  if (const std::string merged = merged_file(output_dir); fs::exists(merged)) paths.push_back(merged);
  return paths;
}

/// Calls `take(record, line, offset)` for every whole line. Throws Error(code) for a line that is no record.
void for_each_record(const std::string& path, ExitCode code,
                     const std::function<void(const CompletionRecord&, const std::string&, int64_t)>& take) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(code, cat("cannot read ", path));
  std::string line;
  int64_t offset = 0;
  // getline that met the end of the file has a torn line: no end of line was there.
  for (int64_t number = 1; std::getline(in, line) && !in.eof(); ++number) {
    try {
      take(completion_from_json(line), line, offset);
    } catch (const std::invalid_argument& e) {
      throw Error(code, cat(path, " line ", number, " is no completion record: ", e.what()));
    }
    offset += static_cast<int64_t>(line.size()) + 1;
  }
  if (in.bad()) throw Error(code, cat("cannot read ", path));
}

}  // namespace

std::map<int64_t, FinishedPrompt> read_finished(const std::string& output_dir) {
  std::map<int64_t, FinishedPrompt> finished;
  for (const std::string& path : record_files(output_dir))
    for_each_record(path, ExitCode::usage, [&](const CompletionRecord& record, const std::string&, int64_t) {
      finished.try_emplace(record.prompt_index,
                           FinishedPrompt{record.id, record.finish_reason == FinishReason::error,
                                          record.prompt_tokens, record.tokens_generated});
    });
  return finished;
}

int64_t merge_completions(const std::string& output_dir) {
  struct Place {
    std::ifstream* file;
    int64_t offset;
    size_t bytes;
  };
  std::map<int64_t, Place> places;  // by prompt_index
  std::vector<std::unique_ptr<std::ifstream>> files;
  for (const std::string& path : record_files(output_dir)) {
    files.push_back(std::make_unique<std::ifstream>(path, std::ios::binary));
    for_each_record(
        path, ExitCode::failed, [&](const CompletionRecord& record, const std::string& line, int64_t offset) {
          places.try_emplace(record.prompt_index, Place{files.back().get(), offset, line.size() + 1});
        });
  }
  const std::string path = merged_file(output_dir);
  AtomicFile merged(path);
  std::string line;
  for (const auto& [index, place] : places) {
    line.resize(place.bytes);
    if (!place.file->seekg(place.offset).read(line.data(), static_cast<std::streamsize>(line.size())))
      runtime_failure(cat("cannot read the record of prompt ", index, " back for ", path));
    merged.write(line);
  }
  merged.commit();
  return static_cast<int64_t>(places.size());
}

void remove_rank_files(const std::string& output_dir) {
  for (const std::string& path : rank_files(output_dir)) fs::remove(path);
}

}  // namespace pipeinfer

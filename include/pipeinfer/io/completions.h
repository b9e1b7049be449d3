// Completion records: how one looks in completions_rank_<r>.jsonl and completions.jsonl, and how they are
// written, read back and merged. A killed job loses no finished record and leaves at most one torn line,
// which nobody reads.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pipeinfer/batch/sequence.h"

namespace pipeinfer {

/// What became of one prompt. A rejected one has finish `error`, a message, and no tokens.
struct CompletionRecord {
  std::optional<std::string> id;  ///< null where the prompt's line could not be read
  int64_t prompt_index = 0;
  std::string variant;
  std::string prompt;
  std::string completion;
  int32_t prompt_tokens = 0;
  int32_t tokens_generated = 0;    ///< EOS, and the token that completed a stop string, included
  std::vector<int32_t> token_ids;  ///< [tokens_generated]
  FinishReason finish_reason = FinishReason::none;
  std::string error;  ///< written as null where empty
  double ttft_s = 0;
  double latency_s = 0;
  double throughput_tok_s = 0;
};

/// One JSON object on one line, without the line's end. Invalid UTF-8 becomes U+FFFD.
std::string to_json_line(const CompletionRecord& record);

/// The reverse. Throws std::invalid_argument that says what is wrong with the line.
CompletionRecord completion_from_json(std::string_view line);

/// Appends to `<output_dir>/completions_rank_<rank>.jsonl`, which it creates. One thread at a time.
class ResultWriter {
 public:
  /// Takes a torn last line of an earlier attempt off. Throws Error(usage) where the file cannot be opened.
  ResultWriter(const std::string& output_dir, int rank);
  ~ResultWriter();
  ResultWriter(const ResultWriter&) = delete;
  ResultWriter& operator=(const ResultWriter&) = delete;

  const std::string& path() const { return path_; }

  /// Appends one line with one write(2): it is the kernel's when this returns. Throws Error(failed) that
  /// names the file and the reason (a full disk), with the file as it was before.
  void write(const CompletionRecord& record);

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

/// What a finished prompt contributes to a resumed run.
struct FinishedPrompt {
  std::optional<std::string> id;
  bool rejected = false;
  int32_t prompt_tokens = 0;
  int32_t tokens_generated = 0;
};

/// Everything finished in all completions_rank_*.jsonl and completions.jsonl of a folder, by prompt_index; a torn
/// last line is not. The first record of a prompt rules. Throws Error(usage) that names file and line of a broken record.
std::map<int64_t, FinishedPrompt> read_finished(const std::string& output_dir);

/// Writes completions.jsonl: the records that read_finished finds, in prompt order, by a temporary file and a
/// rename. Holds no record in memory. Returns how many there are. Throws Error(failed).
int64_t merge_completions(const std::string& output_dir);

/// Removes all completions_rank_*.jsonl: completions.jsonl holds their records.
void remove_rank_files(const std::string& output_dir);

}  // namespace pipeinfer

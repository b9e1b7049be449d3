// Prompts files: one JSON object a line. A bad line becomes a rejected record, never the end of the run.
#pragma once

#include <cstdint>
#include <functional>
#include <istream>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace pipeinfer {

/// One line of a prompts file. Fields that the line does not have are nothing: the run's options hold then.
struct PromptRecord {
  int64_t prompt_index = 0;       ///< from 0, blank lines not counted, before any filter
  int64_t line = 0;               ///< from 1, blank lines counted
  std::optional<std::string> id;  ///< `line-<n>` where the line has none; nothing where it can't be read
  std::string variant;            ///< empty where there is none
  std::string prompt;             ///< the text, empty for prompt_token_ids
  std::optional<std::vector<int32_t>> prompt_token_ids;  ///< never empty in a record that is not rejected
  std::optional<int32_t> token_budget;                   ///< >= 1
  std::optional<int32_t> max_new_tokens;                 ///< >= 1
  std::optional<float> temperature;                      ///< >= 0
  std::optional<int32_t> top_k;                          ///< >= 0
  std::optional<float> top_p;                            ///< (0, 1]
  std::optional<float> repetition_penalty;               ///< > 0
  std::optional<uint64_t> seed;
  std::optional<std::vector<std::string>> stop;  ///< no empty strings
  std::optional<bool> ignore_eos;
  std::string error;  ///< why the line is rejected, with `line <n>`; empty for a good one
  uint64_t hash = 0;  ///< of the line's text and id, for the manifest

  bool rejected() const { return !error.empty(); }
};

/// Reads a prompts file line by line. Rejects what can be known without the tokenizer: broken JSON, invalid
/// UTF-8, no prompt or two, a repeated id, a field of a wrong type or range, token ids outside [0,
/// vocab_size), none at all.
class PromptReader {
 public:
  /// `warn` hears of an unknown field, once a name.
  PromptReader(std::istream& in, int64_t vocab_size, std::function<void(const std::string&)> warn);

  /// The next prompt, or nothing at the end.
  std::optional<PromptRecord> next();

 private:
  PromptRecord parse(const std::string& line);

  std::istream& in_;
  int64_t vocab_size_;
  std::function<void(const std::string&)> warn_;
  int64_t line_ = 0;
  int64_t index_ = 0;
  std::set<std::string> ids_;
  std::set<std::string> unknown_;
};

struct PromptFilter {
  std::string variant = {};  ///< only prompts with this label; empty: all
  int64_t limit = 0;         ///< only the first of those; 0: all
};

struct PromptFile {
  std::vector<PromptRecord> prompts;  ///< what the filter leaves, in the order of the file
  std::vector<uint64_t> hashes;       ///< PromptRecord::hash of all prompts of the file, by prompt_index
};

/// The prompts of a file. Throws Error(usage) where it cannot be read, or holds no prompt (that the filter
/// leaves).
PromptFile read_prompts(const std::string& path, int64_t vocab_size, const PromptFilter& filter,
                        const std::function<void(const std::string&)>& warn);

/// Whether `text` is UTF-8 (RFC 3629: no surrogates, no overlong forms). If not, `bad` is the first byte that
/// is not.
bool is_utf8(std::string_view text, size_t* bad = nullptr);

}  // namespace pipeinfer

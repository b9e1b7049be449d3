// Tokens in, completion records out.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "pipeinfer/io/completions.h"
#include "pipeinfer/sched/scheduler.h"
#include "pipeinfer/tokenizer/completion_stream.h"

namespace pipeinfer {

/// What a run counts, for progress and summary.
struct CompletionCounts {
  int64_t done = 0;
  int64_t prompt_tokens = 0;
  int64_t tokens_generated = 0;
  double first_token_s = 0,
         last_token_s = 0;              ///< now_s() of the earliest and the latest new token of the run
  std::vector<double> ttft_s;           ///< of every completion
  std::vector<double> token_latency_s;  ///< of every completion: seconds per token after the first
};

/// Turns tokens into text and ends into records. Rank 0's serving thread calls it.
class CompletionSink : public SchedulerEvents {
 public:
  /// `tokenizer` null: no text. `write` gets every record as it is complete; `show` the text of a completion as it
  /// grows (may be empty).
  CompletionSink(const Tokenizer* tokenizer, std::vector<int32_t> eos_ids,
                 std::function<void(const CompletionRecord&, const Sequence&)> write,
                 std::function<void(const std::string&)> show = {});

  bool on_token(const Sequence& sequence) override;
  void on_finish(const Sequence& sequence) override;

  const CompletionCounts& counts() const { return counts_; }
  int64_t tokens() const { return tokens_; }  ///< new tokens so far, of unfinished completions too

 private:
  struct Open {
    CompletionStream stream;
    std::string text;
  };
  Open& open(const Sequence& sequence);
  void append(Open& open, const std::string& text);

  const Tokenizer* tokenizer_;
  const std::vector<int32_t> eos_ids_;
  std::function<void(const CompletionRecord&, const Sequence&)> write_;
  std::function<void(const std::string&)> show_;
  std::map<int64_t, Open> open_;  // by prompt_index
  CompletionCounts counts_;
  int64_t tokens_ = 0;
};

}  // namespace pipeinfer

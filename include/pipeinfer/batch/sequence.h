// One request, from the prompts file to its completion.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeinfer/base/sampling.h"

namespace pipeinfer {

/// A request as admitted: its prompt is tokenized and every limit is resolved.
struct Request {
  int64_t prompt_index = 0;  ///< position in the prompts file, from 0
  std::string id;
  std::string variant;
  std::string prompt;                  ///< text, empty for prompt_token_ids
  std::vector<int32_t> prompt_tokens;  ///< with BOS where the tokenizer adds it; never empty
  int32_t max_new_tokens = 0;  ///< least of max_new_tokens, token_budget and context; >= 1 (0: score only)
  int32_t score_from = -1;     ///< teacher forcing: positions >= it give logits in prefill; -1: none
  bool ignore_eos = false;
  std::vector<std::string> stop;
  SamplingParams sampling;
};

enum class FinishReason { none, eos, length, stop, error };

/// "eos", "length", "stop" or "error" ("" for none).
const char* finish_reason_name(FinishReason reason);

/// A request being served. `tokens` grows by what is known on the host.
struct Sequence {
  Request request;
  std::vector<int32_t> tokens;  ///< prompt, then every new token known so far
  std::vector<TopLogit> top;    ///< [new tokens, kTopLogits] where wanted
  FinishReason finish = FinishReason::none;
  double submitted_s = 0;  ///< now_s() of its submission, of the first token, of the end
  double first_token_s = 0;
  double finished_s = 0;
  int32_t preemptions = 0;

  int32_t new_tokens() const { return static_cast<int32_t>(tokens.size() - request.prompt_tokens.size()); }
};

}  // namespace pipeinfer

#include "pipeinfer/app/requests.h"

#include <algorithm>

#include "pipeinfer/base/hash.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {

CompletionRecord rejection(const PromptRecord& prompt, const std::string& error) {
  CompletionRecord record;
  record.id = prompt.id;
  record.prompt_index = prompt.prompt_index;
  record.variant = prompt.variant;
  record.prompt = prompt.prompt;
  record.finish_reason = FinishReason::error;
  record.error = error;
  return record;
}

RequestOrError make_request(const PromptRecord& prompt, const RunConfig& run, const ModelConfig& model,
                            const Tokenizer* tokenizer) {
  if (prompt.rejected()) return {{}, prompt.error};
  const auto reject = [&](const auto&... why) {
    return RequestOrError{{}, cat("line ", prompt.line, ": ", why...)};
  };
  Request request;
  request.prompt_index = prompt.prompt_index;
  request.id = *prompt.id;
  request.variant = prompt.variant;
  request.prompt = prompt.prompt;
  request.prompt_tokens =
      prompt.prompt_token_ids ? *prompt.prompt_token_ids : tokenizer->encode(prompt.prompt);
  const auto n = static_cast<int64_t>(request.prompt_tokens.size());
  if (n == 0) return reject("the prompt is empty, and this tokenizer adds no BOS");
  if (n >= model.context())
    return reject("the prompt has ", n, " tokens and fills the context of ", model.context());
  if (prompt.token_budget && n >= *prompt.token_budget)
    return reject("the prompt has ", n, " tokens and fills its token_budget of ", *prompt.token_budget);
  int64_t most_new =
      std::min<int64_t>(prompt.max_new_tokens.value_or(run.max_new_tokens), model.context() - n);
  if (prompt.token_budget) most_new = std::min(most_new, *prompt.token_budget - n);
  request.max_new_tokens = static_cast<int32_t>(most_new);
  request.ignore_eos = prompt.ignore_eos.value_or(run.ignore_eos);
  request.stop = prompt.stop.value_or(run.stop);
  request.sampling.temperature = prompt.temperature.value_or(static_cast<float>(run.temperature));
  request.sampling.top_k = prompt.top_k.value_or(static_cast<int32_t>(run.top_k));
  request.sampling.top_p = prompt.top_p.value_or(static_cast<float>(run.top_p));
  request.sampling.repetition_penalty =
      prompt.repetition_penalty.value_or(static_cast<float>(run.repetition_penalty));
  request.sampling.seed = prompt.seed.value_or(static_cast<uint64_t>(run.seed));
  request.sampling.id_hash = hash64(request.id);
  return {std::move(request), ""};
}

}  // namespace pipeinfer

// From lines of a prompts file and the run's options to requests, with every limit resolved.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pipeinfer/app/cli.h"
#include "pipeinfer/base/log.h"
#include "pipeinfer/batch/sequence.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/config/model_config.h"
#include "pipeinfer/config/run_config.h"
#include "pipeinfer/io/completions.h"
#include "pipeinfer/io/output_dir.h"
#include "pipeinfer/io/prompts.h"
#include "pipeinfer/tokenizer/tokenizer.h"

namespace pipeinfer {

/// A record for a prompt that is not served: `error` says why, with `line <n>`.
CompletionRecord rejection(const PromptRecord& prompt, const std::string& error);

/// "line 3: why", or only "why" for a prompt that is in no file.
std::string located(const PromptRecord& prompt, const std::string& why);

/// The request of a prompt, or why it is rejected (`line <n>: ...`): the line's own error, a prompt that fills the
/// context or its token budget, an empty text where no BOS is added. A line's field overrides the option of its name.
/// `tokenizer` may be null where the prompt is token ids.
struct RequestOrError {
  Request request;
  std::string error;  ///< empty: `request` is good
};
RequestOrError make_request(const PromptRecord& prompt, const RunConfig& run, const ModelConfig& model,
                            const Tokenizer* tokenizer);

/// What the attempts that a resume continues have done.
struct EarlierAttempts {
  int64_t done = 0, rejected = 0;
  int64_t prompt_tokens = 0, tokens_generated = 0;
};

/// What rank 0 knows of the prompts before anything is loaded.
struct Inputs {
  PromptFile file;
  std::unique_ptr<Tokenizer> tokenizer;  ///< null: every prompt is token ids, and there is no tokenizer
  std::vector<Request> requests;
  std::vector<CompletionRecord> rejected;
  EarlierAttempts earlier;
};

/// Reads prompts and tokenizer. Throws Error(usage).
Inputs read_inputs(Log& log, const Command& command, const ModelConfig& model);

/// What a resume of this run must agree with.
Manifest make_manifest(const RunConfig& run, const Inputs& inputs, const Checkpoint& checkpoint);

/// The prompt of that place in the file, or null where a filter leaves it out.
const PromptRecord* find_prompt(const Inputs& inputs, int64_t index);

/// Counts what an earlier attempt has done. Throws Error(usage) where a filter now leaves a prompt of it out: it would
/// stay in completions.jsonl.
void take_finished(const RunConfig& run, const std::map<int64_t, FinishedPrompt>& finished, Inputs& inputs);

/// Tokenizes what no earlier attempt has finished. Throws Error(usage) where --prompt is rejected.
void make_requests(const Command& command, const ModelConfig& model,
                   const std::map<int64_t, FinishedPrompt>& finished, Inputs& inputs);

}  // namespace pipeinfer

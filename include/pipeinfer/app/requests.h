// From lines of a prompts file and the run's options to requests, with every limit resolved.
#pragma once

#include <string>
#include <vector>

#include "pipeinfer/batch/sequence.h"
#include "pipeinfer/config/model_config.h"
#include "pipeinfer/config/run_config.h"
#include "pipeinfer/io/completions.h"
#include "pipeinfer/io/prompts.h"
#include "pipeinfer/tokenizer/tokenizer.h"

namespace pipeinfer {

/// A record for a prompt that is not served: `error` says why, with `line <n>`.
CompletionRecord rejection(const PromptRecord& prompt, const std::string& error);

/// The request of a prompt, or why it is rejected (`line <n>: ...`): the line's own error, a prompt that fills the
/// context or its token budget, an empty text where no BOS is added. A line's field overrides the option of its name.
/// `tokenizer` may be null where the prompt is token ids.
struct RequestOrError {
  Request request;
  std::string error;  ///< empty: `request` is good
};
RequestOrError make_request(const PromptRecord& prompt, const RunConfig& run, const ModelConfig& model,
                            const Tokenizer* tokenizer);

}  // namespace pipeinfer

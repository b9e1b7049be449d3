#include "pipeinfer/app/requests.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/hash.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {

namespace {

std::string file_hash(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return "none";
  std::ostringstream text;
  text << in.rdbuf();
  return hex64(hash64(text.str()));
}

// Of --prompt; there is no line that a message could name.
PromptFile single_prompt(const std::string& text) {
  if (size_t bad = 0; !is_utf8(text, &bad))
    usage_error(cat("--prompt: byte ", bad + 1, " is not valid UTF-8"));
  PromptRecord prompt;
  prompt.id = "prompt";
  prompt.prompt = text;
  return {{prompt}, {hash64(text)}};
}

bool before(const PromptRecord& prompt, int64_t index) { return prompt.prompt_index < index; }

}  // namespace

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

std::string located(const PromptRecord& prompt, const std::string& why) {
  return prompt.line > 0 ? cat("line ", prompt.line, ": ", why) : why;
}

RequestOrError make_request(const PromptRecord& prompt, const RunConfig& run, const ModelConfig& model,
                            const Tokenizer* tokenizer) {
  if (prompt.rejected()) return {{}, prompt.error};
  const auto reject = [&](const auto&... why) { return RequestOrError{{}, located(prompt, cat(why...))}; };
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
    return reject("the prompt has ", counted(n, "token"), " and fills the context of ", model.context());
  if (prompt.token_budget && n >= *prompt.token_budget)
    return reject("the prompt has ", counted(n, "token"), " and fills its token_budget of ",
                  *prompt.token_budget);
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

Inputs read_inputs(Log& log, const Command& command, const ModelConfig& model) {
  const RunConfig& run = command.config;
  Inputs inputs;
  if (command.prompt)
    inputs.file = single_prompt(*command.prompt);
  else
    inputs.file = read_prompts(run.prompt_path, model.vocab_size, {run.variant, run.limit},
                               [&](const std::string& text) { log.warn(text); });
  const bool needs_text =
      std::any_of(inputs.file.prompts.begin(), inputs.file.prompts.end(),
                  [](const auto& prompt) { return !prompt.rejected() && !prompt.prompt_token_ids; });
  if (needs_text || Tokenizer::exists(run.tokenizer()))
    inputs.tokenizer = std::make_unique<Tokenizer>(run.tokenizer(), model);
  const bool wants_stop = !run.stop.empty() || std::any_of(inputs.file.prompts.begin(),
                                                           inputs.file.prompts.end(), [](const auto& prompt) {
                                                             return prompt.stop && !prompt.stop->empty();
                                                           });
  if (wants_stop && !inputs.tokenizer)
    log.warn(cat(run.tokenizer(), " has no tokenizer.model: there is no text to find stop strings in"));
  return inputs;
}

Manifest make_manifest(const RunConfig& run, const Inputs& inputs, const Checkpoint& checkpoint) {
  Manifest manifest;
  for (const char* name : {"config.json", "generation_config.json"})  // the latter may name EOS ids
    manifest.facts[name] = file_hash(run.model_path + "/" + name);
  manifest.facts["tensor headers"] = hex64(checkpoint.header_hash());
  for (const char* name : {"tokenizer", "tokenizer_config.json"}) manifest.facts[name] = "none";
  if (inputs.tokenizer) {
    std::filesystem::path file = inputs.tokenizer->file();
    manifest.facts["tokenizer"] = file_hash(file.string());
    manifest.facts["tokenizer_config.json"] =
        file_hash(file.replace_filename("tokenizer_config.json").string());
  }
  for (const auto& [key, value] : result_options(run)) manifest.facts[key] = value;
  manifest.prompts = inputs.file.hashes;
  return manifest;
}

const PromptRecord* find_prompt(const Inputs& inputs, int64_t index) {
  const auto& prompts = inputs.file.prompts;
  const auto at = std::lower_bound(prompts.begin(), prompts.end(), index, before);
  return at != prompts.end() && at->prompt_index == index ? &*at : nullptr;
}

void take_finished(const RunConfig& run, const std::map<int64_t, FinishedPrompt>& finished, Inputs& inputs) {
  for (const auto& [index, prompt] : finished) {
    if (!find_prompt(inputs, index))
      usage_error(cat("cannot resume in ", run.output_dir, ": prompt ", index,
                      " (from 0) of the prompts file is done, but variant and limit leave it out now"));
    ++(prompt.rejected ? inputs.earlier.rejected : inputs.earlier.done);
    inputs.earlier.prompt_tokens += prompt.prompt_tokens;
    inputs.earlier.tokens_generated += prompt.tokens_generated;
  }
}

void make_requests(const Command& command, const ModelConfig& model,
                   const std::map<int64_t, FinishedPrompt>& finished, Inputs& inputs) {
  for (const PromptRecord& prompt : inputs.file.prompts) {
    if (finished.count(prompt.prompt_index)) continue;
    auto [request, error] = make_request(prompt, command.config, model, inputs.tokenizer.get());
    if (!error.empty()) {
      if (command.prompt) usage_error(cat("--prompt: ", error));
      inputs.rejected.push_back(rejection(prompt, error));
      continue;
    }
    if (command.local_debug) request.sampling.temperature = 0;
    inputs.requests.push_back(std::move(request));
  }
}

}  // namespace pipeinfer

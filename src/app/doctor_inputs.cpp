#include <algorithm>
#include <limits>

#include "pipeinfer/app/doctor_checks.h"
#include "pipeinfer/app/requests.h"
#include "pipeinfer/checkpoint/checkpoint.h"

namespace pipeinfer {

namespace {

std::string parameters_text(int64_t n) {
  char text[32];
  std::snprintf(text, sizeof text, n < 1'000'000'000 ? "%.1f M" : "%.2f B",
                static_cast<double>(n) / (n < 1'000'000'000 ? 1e6 : 1e9));
  return text;
}

// Lines that a run would reject, and those that it would only warn of.
void examine_prompts(const PromptFile& file, const std::vector<std::string>& warnings, const RunConfig& run,
                     const std::optional<ModelConfig>& model, const Tokenizer* tokenizer,
                     Findings& findings) {
  const char* const check = "prompts";
  for (const std::string& warning : warnings)
    findings.warn(check, warning, "correct the field's name, or take it out");
  int64_t rejected = 0;
  std::string first;
  for (const PromptRecord& prompt : file.prompts) {
    std::string error = prompt.error;
    if (error.empty() && model && (tokenizer || prompt.prompt_token_ids))
      error = make_request(prompt, run, *model, tokenizer).error;
    if (error.empty()) continue;
    if (++rejected == 1) first = error;
  }
  const auto n = static_cast<int64_t>(file.prompts.size());
  if (rejected > 0)
    findings.warn(
        check,
        cat(run.prompt_path, ": ", rejected, " of ", counted(n, "prompt"), " would be rejected: ", first),
        "correct the lines; the other prompts complete without them");
  else
    findings.ok(check, cat(run.prompt_path, ": ", counted(n, "prompt"),
                           model && tokenizer ? ", all within the context" : ""));
}

}  // namespace

void examine_config(const Command& command, Findings& findings) {
  const char* const check = "config";
  for (const std::string& error : command.config_errors)
    findings.fail(check, error, "correct it: pipeinfer run --help and README.md list the keys");
  if (!command.config_errors.empty()) return;
  findings.ok(check, command.config_file.empty() ? "options only: --config is not given"
                                                 : cat(command.config_file, " is in order"));
}

std::optional<ModelConfig> examine_model(const RunConfig& run, Findings& findings) {
  const char* const check = "model";
  std::optional<ModelConfig> model;
  if (run.model_path.empty()) return findings.not_given(check, "--model"), model;
  findings.attempt(check, "give --model the folder of a LlamaForCausalLM checkpoint, on every host", [&] {
    model = load_model_config(run.model_path);
    findings.ok(check, cat(run.model_path, ": ", counted(model->n_layers, "layer"), ", ",
                           parameters_text(model->total_parameters()), " parameters, ",
                           dtype_name(model->dtype), ", context ", model->context()));
  });
  return model;
}

uint64_t examine_weights(const RunConfig& run, const std::optional<ModelConfig>& model, Findings& findings) {
  const char* const check = "weights";
  uint64_t hash = 0;
  if (run.model_path.empty()) return findings.not_given(check, "--model"), hash;
  findings.attempt(check, "copy or convert the checkpoint again (scripts/convert_checkpoint.py)", [&] {
    const Checkpoint checkpoint(run.model_path);
    if (model) check_weights(*model, checkpoint);
    hash = checkpoint.header_hash();
    findings.ok(check,
                cat(counted(static_cast<long long>(checkpoint.names().size()), "tensor"),
                    model ? ", as config.json wants them" : "; config.json is not there to compare with"));
  });
  return hash;
}

void examine_texts(const RunConfig& run, const std::optional<ModelConfig>& model, Findings& findings) {
  std::optional<PromptFile> file;
  std::vector<std::string> warnings;
  if (run.prompt_path.empty())
    findings.not_given("prompts", "--prompts");
  else
    findings.attempt("prompts", "give --prompts a file with one JSON object a line", [&] {
      file =
          read_prompts(run.prompt_path, model ? model->vocab_size : std::numeric_limits<int32_t>::max(),
                       {run.variant, run.limit}, [&](const std::string& text) { warnings.push_back(text); });
    });
  const bool texts =
      !file || std::any_of(file->prompts.begin(), file->prompts.end(), [](const PromptRecord& prompt) {
        return !prompt.rejected() && !prompt.prompt_token_ids;
      });

  const char* const check = "tokenizer";
  std::unique_ptr<Tokenizer> tokenizer;
  if (run.tokenizer().empty())
    findings.not_given(check, "--model");
  else if (!model)
    findings.warn(check, "not checked, because of the FAIL above", "");
  else if (!texts && !Tokenizer::exists(run.tokenizer()))
    findings.ok(check, "there is none, and all prompts are token ids");
  else
    findings.attempt(
        check, "put tokenizer.model there or give --tokenizer; only prompts of prompt_token_ids need none",
        [&] {
          tokenizer = std::make_unique<Tokenizer>(run.tokenizer(), *model);
          findings.ok(check, cat(tokenizer->file(), tokenizer->adds_bos() ? ", BOS in front" : ", no BOS"));
        });
  if (file) examine_prompts(*file, warnings, run, model, tokenizer.get(), findings);
}

}  // namespace pipeinfer

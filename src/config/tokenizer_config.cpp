#include "pipeinfer/config/tokenizer_config.h"

#include <filesystem>

#include "json_file.h"

namespace pipeinfer {
namespace {

/// A special token is its text, or an object with the text as `content`.
std::string special_token(const JsonObject& file, const char* key) {
  if (file.at(key).is_object()) return file.object(key).text_or("content", "");
  return file.text_or(key, "");
}

}  // namespace

TokenizerConfig load_tokenizer_config(const std::string& folder) {
  TokenizerConfig config;
  const std::filesystem::path path = std::filesystem::path(folder) / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return config;
  const JsonObject file = JsonObject::read(path.string());
  config.add_bos_token = file.boolean_or("add_bos_token", config.add_bos_token);
  config.add_eos_token = file.boolean_or("add_eos_token", config.add_eos_token);
  config.bos_token = special_token(file, "bos_token");
  config.eos_token = special_token(file, "eos_token");
  if (!file.boolean_or("add_prefix_space", true)) file.wrong("add_prefix_space", "true");
  return config;
}

}  // namespace pipeinfer

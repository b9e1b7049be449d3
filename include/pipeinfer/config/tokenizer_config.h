// What tokenizer_config.json says of how text becomes tokens.
#pragma once

#include <string>

namespace pipeinfer {

struct TokenizerConfig {
  bool add_bos_token = true;
  bool add_eos_token = false;  ///< also appends EOS to a prompt, as transformers does
  std::string bos_token;       ///< "<s>"; empty where the file does not name it
  std::string eos_token;
};

/// Reads `folder`/tokenizer_config.json; the defaults where there is none. Throws Error(usage) that names
/// file and key for broken JSON, wrong types, and settings that would change the tokens and are not
/// implemented.
TokenizerConfig load_tokenizer_config(const std::string& folder);

}  // namespace pipeinfer

// The text of a completion while its tokens come: what follows the prompt's text, without EOS and the stop
// string.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pipeinfer/tokenizer/stop_matcher.h"
#include "pipeinfer/tokenizer/stream_decoder.h"

namespace pipeinfer {

class CompletionStream {
 public:
  /// Without a tokenizer (null) the text is empty and nothing stops.
  CompletionStream(const Tokenizer* tokenizer, std::span<const int32_t> prompt,
                   const std::vector<std::string>& stop);

  /// A new token; returns the text that may be shown now.
  std::string push(int32_t id);

  /// Whether the last token completed a stop string.
  bool stopped() const { return stops_.stopped(); }

  /// The last of the text, after the last token.
  std::string finish();

 private:
  std::optional<StreamDecoder> decoder_;
  StopMatcher stops_;
};

}  // namespace pipeinfer

#include "pipeinfer/tokenizer/completion_stream.h"

namespace pipeinfer {

CompletionStream::CompletionStream(const Tokenizer* tokenizer, std::span<const int32_t> prompt,
                                   const std::vector<std::string>& stop)
    : stops_(stop) {
  if (tokenizer) decoder_.emplace(*tokenizer, prompt);
}

std::string CompletionStream::push(int32_t id) { return decoder_ ? stops_.push(decoder_->next(id)) : ""; }

std::string CompletionStream::finish() {
  if (!decoder_) return "";
  const std::string last = stops_.push(decoder_->flush());
  return last + stops_.flush();
}

}  // namespace pipeinfer

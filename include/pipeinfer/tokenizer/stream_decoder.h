// Tokens to text one at a time, never half a character.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "pipeinfer/tokenizer/tokenizer.h"

namespace pipeinfer {

/// The text that follows a prompt's text. All of it together is what sentencepiece decodes prompt and new
/// tokens to, without the prompt's part. Work and memory do not grow with the sequence.
class StreamDecoder {
 public:
  /// The tokenizer must outlive it.
  StreamDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt);

  /// The text that the token adds: whole UTF-8 characters, maybe none. Bytes that can't be UTF-8 become
  /// U+FFFD each.
  std::string next(int32_t id);

  /// The end: what is left of an unfinished character becomes U+FFFD, one a byte.
  std::string flush();

 private:
  void append_byte(char byte, std::string& text);
  void append_piece(std::string_view piece, std::string& text);
  /// Moves the first `size` waiting bytes to the text, or U+FFFD for one that is no UTF-8.
  void take(size_t size, bool valid, std::string& text);
  void give_up(std::string& text);

  const Tokenizer* tokenizer_;
  std::string waiting_;      ///< bytes of an unfinished character, at most 3
  size_t prompt_bytes_ = 0;  ///< how many of them are the prompt's, whose U+FFFD is not ours
  bool at_start_ = true;     ///< a leading space may still be dropped
  bool dropped_space_ = false;
};

}  // namespace pipeinfer

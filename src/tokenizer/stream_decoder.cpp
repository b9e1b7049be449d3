#include "pipeinfer/tokenizer/stream_decoder.h"

namespace pipeinfer {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  ///< U+FFFD

enum class Utf8 { valid, invalid, unfinished };

/// What the first character of `bytes` (not empty) is, and its length (RFC 3629: no overlong forms, no
/// surrogates, nothing above U+10FFFF).
Utf8 classify(std::string_view bytes, size_t& length) {
  const unsigned char lead = bytes[0];
  length = lead < 0x80 ? 1 : lead >> 5 == 0x6 ? 2 : lead >> 4 == 0xe ? 3 : lead >> 3 == 0x1e ? 4 : 0;
  if (length == 0) return Utf8::invalid;
  if (length == 1) return Utf8::valid;
  uint32_t code = lead & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return Utf8::unfinished;
    const unsigned char byte = bytes[i];
    if (byte >> 6 != 0x2) return Utf8::invalid;
    code = code << 6 | (byte & 0x3f);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  return code >= kSmallest[length] && code <= 0x10ffff && !surrogate ? Utf8::valid : Utf8::invalid;
}

}  // namespace

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt)
    : tokenizer_(&tokenizer) {
  for (const int32_t id : prompt) next(id);
  prompt_bytes_ = waiting_.size();
}

std::string StreamDecoder::next(int32_t id) {
  const Tokenizer::Piece& piece = tokenizer_->piece(id);
  std::string text;
  if (piece.is_byte)
    append_byte(piece.text[0], text);
  else
    append_piece(piece.text, text);
  return text;
}

std::string StreamDecoder::flush() {
  std::string text;
  give_up(text);
  return text;
}

void StreamDecoder::append_byte(char byte, std::string& text) {
  waiting_ += byte;
  while (!waiting_.empty()) {
    size_t length = 0;
    const Utf8 found = classify(waiting_, length);
    if (found == Utf8::unfinished) return;
    take(found == Utf8::valid ? length : 1, found == Utf8::valid, text);
  }
}

void StreamDecoder::append_piece(std::string_view piece, std::string& text) {
  give_up(text);  // a run of bytes ends with any other piece
  if (at_start_ && dropped_space_ && !tokenizer_->drops_leading_spaces()) at_start_ = false;
  if (at_start_ && tokenizer_->drops_first_space() && piece.starts_with(' ')) {
    dropped_space_ = true;
    piece.remove_prefix(1);
  }
  if (!piece.empty()) at_start_ = false;
  text += piece;
}

void StreamDecoder::take(size_t size, bool valid, std::string& text) {
  at_start_ = false;
  if (valid)
    text.append(waiting_, 0, size);
  else if (prompt_bytes_ == 0)
    text += kReplacement;
  prompt_bytes_ = prompt_bytes_ > size ? prompt_bytes_ - size : 0;
  waiting_.erase(0, size);
}

void StreamDecoder::give_up(std::string& text) {
  while (!waiting_.empty()) take(1, false, text);
}

}  // namespace pipeinfer

// Text to tokens with sentencepiece (Kudo & Richardson 2018, arXiv:1808.06226), and the text of each token.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pipeinfer/config/model_config.h"
#include "pipeinfer/config/tokenizer_config.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace pipeinfer {

/// Immutable once loaded; may be used by several threads.
class Tokenizer {
 public:
  /// What a token adds to a text.
  struct Piece {
    std::string text;      ///< whole UTF-8 characters, with spaces; empty for control and unknown pieces
    bool is_byte = false;  ///< byte fallback (<0xE2>): `text` is that one byte
  };

  /// Whether `path`, a folder or a file, has a sentencepiece model.
  static bool exists(const std::string& path);

  /// `path`: a folder with tokenizer.model (and maybe tokenizer_config.json), or the model file itself.
  /// Throws Error(usage): no such file, only tokenizer.json, broken, or more pieces than the model's
  /// vocabulary.
  Tokenizer(const std::string& path, const ModelConfig& model);
  ~Tokenizer();

  /// The prompt's tokens: sentencepiece's, with BOS in front unless add_bos_token is false, and EOS behind
  /// where add_eos_token is true. "<s>" in the text is text. `text` is valid UTF-8.
  std::vector<int32_t> encode(std::string_view text) const;

  /// The whole text of the tokens, as sentencepiece decodes them, but that unknown pieces yield nothing.
  std::string decode(std::span<const int32_t> ids) const;

  /// Ids outside the tokenizer's vocabulary (the model's may be larger) have an empty text.
  const Piece& piece(int32_t id) const;

  bool adds_bos() const { return config_.add_bos_token && bos_id_ >= 0; }
  const std::string& file() const { return file_; }  ///< path of tokenizer.model

  /// Whether the first space of a text is not shown (add_dummy_prefix), and whether all its leading ones are
  /// not (remove_extra_whitespaces).
  bool drops_first_space() const { return drops_first_space_; }
  bool drops_leading_spaces() const { return drops_leading_spaces_; }

 private:
  int32_t special_id(const std::string& name, int32_t of_model, int32_t of_tokenizer) const;
  void read_pieces();
  void probe_leading_spaces();

  std::string file_;
  TokenizerConfig config_;
  int32_t bos_id_ = -1, eos_id_ = -1;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  std::vector<Piece> pieces_;  ///< [vocabulary]
  Piece nothing_;
  bool drops_first_space_ = false, drops_leading_spaces_ = false;
};

}  // namespace pipeinfer

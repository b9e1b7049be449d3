#include "pipeinfer/tokenizer/tokenizer.h"

#include <sentencepiece_processor.h>

#include <charconv>
#include <filesystem>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/tokenizer/stream_decoder.h"

namespace pipeinfer {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSpace = "\xe2\x96\x81";  ///< U+2581, sentencepiece's space

std::string model_file(const std::string& path) {
  return (fs::is_directory(path) ? fs::path(path) / "tokenizer.model" : fs::path(path)).string();
}

std::string with_spaces(std::string_view piece) {
  std::string text;
  for (size_t i = 0; i < piece.size();) {
    const bool space = piece.substr(i).starts_with(kSpace);
    text += space ? ' ' : piece[i];
    i += space ? kSpace.size() : 1;
  }
  return text;
}

/// "<0xE2>" as its byte.
char byte_of(const std::string& piece) {
  unsigned value = 0;
  std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  return static_cast<char>(value);
}

}  // namespace

bool Tokenizer::exists(const std::string& path) { return fs::is_regular_file(model_file(path)); }

Tokenizer::Tokenizer(const std::string& path, const ModelConfig& model)
    : file_(model_file(path)), processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {
  const fs::path folder = fs::path(file_).parent_path();
  if (!exists(path)) {
    if (fs::exists(folder / "tokenizer.json"))
      usage_error(cat(folder.string(), " has only tokenizer.json, which is not supported: text prompts need ",
                      "sentencepiece's tokenizer.model (prompt_token_ids need none)"));
    usage_error(cat(file_, " does not exist: text prompts need sentencepiece's tokenizer.model"));
  }
  const auto status = processor_->Load(file_);
  if (!status.ok()) usage_error(cat(file_, ": not a sentencepiece model (", status.ToString(), ")"));
  if (processor_->GetPieceSize() > model.vocab_size)
    usage_error(cat(file_, ": has ", processor_->GetPieceSize(), " pieces, but the model's vocab_size is ",
                    model.vocab_size));

  config_ = load_tokenizer_config(folder.string());
  bos_id_ = special_id(config_.bos_token, model.bos_id, processor_->bos_id());
  eos_id_ =
      special_id(config_.eos_token, model.eos_ids.empty() ? -1 : model.eos_ids.front(), processor_->eos_id());
  read_pieces();
  probe_leading_spaces();
}

Tokenizer::~Tokenizer() = default;

/// The token that tokenizer_config.json names, else config.json's, else the tokenizer's own; -1 for none.
int32_t Tokenizer::special_id(const std::string& name, int32_t of_model, int32_t of_tokenizer) const {
  const int32_t named = name.empty() ? -1 : processor_->PieceToId(name);
  if (named >= 0 && !processor_->IsUnknown(named)) return named;
  return of_model >= 0 ? of_model : of_tokenizer;
}

void Tokenizer::read_pieces() {
  pieces_.resize(processor_->GetPieceSize());
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const int id = static_cast<int>(i);
    const std::string& piece = processor_->IdToPiece(id);
    if (processor_->IsControl(id) || processor_->IsUnknown(id)) continue;
    if (processor_->IsByte(id))
      pieces_[i] = {std::string(1, byte_of(piece)), true};
    else
      pieces_[i] = {with_spaces(piece), false};
  }
}

/// The model's normalizer settings are not public, what it does with a leading space is.
void Tokenizer::probe_leading_spaces() {
  const auto normal = [&](size_t id) { return !pieces_[id].is_byte && pieces_[id].text.starts_with(' '); };
  const auto keeps_space = [&](const std::vector<int>& ids) {
    std::string text;
    const auto status = processor_->Decode(ids, &text);
    if (!status.ok()) usage_error(cat(file_, ": cannot decode (", status.ToString(), ")"));
    return text.starts_with(' ');
  };
  for (size_t id = 0; id < pieces_.size() && !drops_first_space_; ++id)
    if (normal(id)) drops_first_space_ = !keeps_space({static_cast<int>(id)});
  const int space = processor_->PieceToId(std::string(kSpace));
  if (drops_first_space_ && !processor_->IsUnknown(space))
    drops_leading_spaces_ = !keeps_space({space, space});
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int> pieces;
  const auto status = processor_->Encode({text.data(), text.size()}, &pieces);
  if (!status.ok()) runtime_failure(cat(file_, ": cannot encode a text (", status.ToString(), ")"));
  std::vector<int32_t> ids;
  ids.reserve(pieces.size() + 2);
  if (adds_bos()) ids.push_back(bos_id_);
  ids.insert(ids.end(), pieces.begin(), pieces.end());
  if (config_.add_eos_token && eos_id_ >= 0) ids.push_back(eos_id_);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  StreamDecoder decoder(*this, {});
  std::string text;
  for (const int32_t id : ids) text += decoder.next(id);
  return text + decoder.flush();
}

const Tokenizer::Piece& Tokenizer::piece(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < pieces_.size() ? pieces_[id] : nothing_;
}

}  // namespace pipeinfer

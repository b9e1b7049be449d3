#include "pipeinfer/tokenizer/stream_decoder.h"

#include <algorithm>
#include <random>
#include <sstream>

#include "pipeinfer/tokenizer/completion_stream.h"
#include "trained.h"

namespace pipeinfer {
namespace {

/// Whether every character of the text is whole. Not the decoder's own code: sentencepiece-free and
/// table-free.
bool whole_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const unsigned char lead = text[i];
    const size_t length = lead < 0x80   ? 1
                          : lead < 0xc2 ? 0
                          : lead < 0xe0 ? 2
                          : lead < 0xf0 ? 3
                          : lead < 0xf5 ? 4
                                        : 0;
    if (length == 0 || i + length > text.size()) return false;
    for (size_t k = 1; k < length; ++k)
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) return false;
    i += length;
  }
  return true;
}

std::string stream(const Tokenizer& tokenizer, const std::vector<int>& prompt, const std::vector<int>& ids) {
  StreamDecoder decoder(tokenizer, prompt);
  std::string all;
  for (const int id : ids) {
    const std::string text = decoder.next(id);
    EXPECT_TRUE(whole_utf8(text));
    all += text;
  }
  return all + decoder.flush();
}

int byte_id(const Trained& trained, unsigned byte) {
  std::ostringstream piece;
  piece << "<0x" << std::uppercase << std::hex << (byte < 16 ? "0" : "") << byte << ">";
  return trained.reference.PieceToId(piece.str());
}

std::vector<int> byte_ids(const Trained& trained, const std::string& bytes) {
  std::vector<int> ids;
  for (const char byte : bytes) ids.push_back(byte_id(trained, static_cast<unsigned char>(byte)));
  return ids;
}

TEST(StreamDecoder, RandomTokensDecodeAsSentencepiece) {
  std::mt19937 rng(7);
  for (const Variant& variant : variants()) {
    const Trained trained(variant);
    const Tokenizer tokenizer(trained.folder(), trained.model());
    const int vocab = trained.reference.GetPieceSize();
    const bool has_bytes = variant.byte_fallback == "true";
    const int space = trained.reference.PieceToId("\xe2\x96\x81");
    for (int round = 0; round < 3000; ++round) {
      std::vector<int> ids;
      const int length = static_cast<int>(rng() % 12);
      for (int i = 0; i < length; ++i) {
        const int kind = static_cast<int>(rng() % 4);
        // Control tokens and spaces at the start, and bytes that often are a part of a character, are what is
        // hard.
        if (kind == 0) ids.push_back(space);
        if (kind == 1) ids.push_back(1 + static_cast<int>(rng() % 2));
        if (kind == 2 && has_bytes)
          ids.push_back(byte_id(trained, rng() % 3 ? 0x80 + rng() % 128 : rng() % 256));
        if (kind == 3) ids.push_back(1 + static_cast<int>(rng() % (vocab - 1)));
      }
      ASSERT_EQ(stream(tokenizer, {}, ids), trained.reference.DecodeIds(ids))
          << variant.name << " round " << round;
    }
  }
}

TEST(StreamDecoder, CompletionFollowsThePromptsText) {
  for (const Variant& variant : variants()) {
    const Trained trained(variant);
    const Tokenizer tokenizer(trained.folder(), trained.model());
    for (const std::string& text : awkward_texts()) {
      std::vector<int> ids = {1};
      const std::vector<int> pieces = trained.reference.EncodeAsIds(text);
      ids.insert(ids.end(), pieces.begin(), pieces.end());
      if (std::find(ids.begin(), ids.end(), 0) != ids.end()) continue;  // unknown pieces
      const std::string whole = trained.reference.DecodeIds(ids);
      for (size_t cut = 1; cut <= ids.size(); ++cut) {
        const std::vector<int> prompt(ids.begin(), ids.begin() + cut), rest(ids.begin() + cut, ids.end());
        const std::string before = trained.reference.DecodeIds(prompt);
        if (before.ends_with("\xef\xbf\xbd")) continue;  // cut inside a character
        EXPECT_EQ(before + stream(tokenizer, prompt, rest), whole)
            << variant.name << " cut " << cut << ": " << text;
      }
    }
  }
}

TEST(StreamDecoder, KeepsTheSpaceBetweenPromptAndCompletion) {
  const Trained trained(variants()[0]);
  const Tokenizer tokenizer(trained.folder(), trained.model());
  const std::vector<int> the = trained.reference.EncodeAsIds("the");
  EXPECT_EQ(stream(tokenizer, tokenizer.encode("and"), the), " the");
  EXPECT_EQ(stream(tokenizer, {1}, the), "the") << "nothing comes before it";
}

TEST(StreamDecoder, WaitsForWholeCharacters) {
  const Trained trained(variants()[0]);
  const Tokenizer tokenizer(trained.folder(), trained.model());
  const std::vector<int> face = byte_ids(trained, "🤖");
  StreamDecoder decoder(tokenizer, tokenizer.encode("a"));
  EXPECT_EQ(decoder.next(face[0]), "");
  EXPECT_EQ(decoder.next(face[1]), "");
  EXPECT_EQ(decoder.next(face[2]), "");
  EXPECT_EQ(decoder.next(face[3]), "🤖");
  EXPECT_EQ(decoder.next(face[0]), "");
  EXPECT_EQ(decoder.next(face[1]), "");
  EXPECT_EQ(decoder.flush(), "\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(decoder.flush(), "");
}

TEST(StreamDecoder, ACharacterThatThePromptBegan) {
  const Trained trained(variants()[0]);
  const Tokenizer tokenizer(trained.folder(), trained.model());
  const std::vector<int> begun = byte_ids(trained, "\xf0\x9f");
  EXPECT_EQ(stream(tokenizer, begun, byte_ids(trained, "\xa4\x96!")), "🤖!");
  // Where it stays unfinished, its U+FFFD are the prompt's.
  EXPECT_EQ(stream(tokenizer, begun, byte_ids(trained, "!")), "!");
  EXPECT_EQ(stream(tokenizer, begun, byte_ids(trained, "\xa4!")), "\xef\xbf\xbd!");
  EXPECT_EQ(stream(tokenizer, begun, {}), "");
}

TEST(StreamDecoder, ControlAndForeignTokensYieldNothing) {
  const Trained trained(variants()[0]);
  const Tokenizer tokenizer(trained.folder(), trained.model());
  EXPECT_EQ(stream(tokenizer, tokenizer.encode("a"), {0, 1, 2, -1, 420, 1 << 30}), "");
}

TEST(CompletionStream, CutsAtAStopStringAcrossTokens) {
  const Trained trained(variants()[0]);
  const Tokenizer tokenizer(trained.folder(), trained.model());
  const std::vector<int32_t> prompt = tokenizer.encode("In");
  const std::vector<int> ids = trained.reference.EncodeAsIds("the beginning God created");
  CompletionStream completion(&tokenizer, prompt, {"ing Go", "zebra"});
  std::string text;
  size_t used = 0;
  while (!completion.stopped() && used < ids.size()) text += completion.push(ids[used++]);
  text += completion.finish();
  EXPECT_TRUE(completion.stopped());
  EXPECT_LT(used, ids.size());
  EXPECT_EQ(text, " the beginn");
}

TEST(CompletionStream, GivesBackWhatItHeld) {
  const Trained trained(variants()[0]);
  const Tokenizer tokenizer(trained.folder(), trained.model());
  CompletionStream completion(&tokenizer, tokenizer.encode("In"), {"heavens"});
  std::string text;
  for (const int id : trained.reference.EncodeAsIds("the heaven")) text += completion.push(id);
  EXPECT_EQ(text, " the ");
  text += completion.push(byte_ids(trained, "\xe6")[0]);
  EXPECT_EQ(text + completion.finish(), " the heaven\xef\xbf\xbd");
  EXPECT_FALSE(completion.stopped());
}

TEST(CompletionStream, WithoutATokenizerThereIsNoText) {
  CompletionStream completion(nullptr, std::vector<int32_t>{5, 6}, {"a"});
  EXPECT_EQ(completion.push(7), "");
  EXPECT_EQ(completion.finish(), "");
  EXPECT_FALSE(completion.stopped());
}

}  // namespace
}  // namespace pipeinfer

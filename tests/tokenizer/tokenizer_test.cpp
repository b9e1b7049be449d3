#include "pipeinfer/tokenizer/tokenizer.h"

#include <nlohmann/json.hpp>

#include "trained.h"

namespace pipeinfer {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

TEST(Tokenizer, EncodesAsSentencepieceAfterBos) {
  for (const Variant& variant : variants()) {
    const Trained trained(variant);
    const Tokenizer tokenizer(trained.folder(), trained.model());
    EXPECT_TRUE(tokenizer.adds_bos());
    for (const std::string& text : awkward_texts()) {
      std::vector<int> expected = trained.reference.EncodeAsIds(text);
      expected.insert(expected.begin(), 1);
      EXPECT_EQ(tokenizer.encode(text), expected) << variant.name << ": " << text;
    }
  }
}

TEST(Tokenizer, DecodesAsSentencepiece) {
  for (const Variant& variant : variants()) {
    if (variant.name == "no_bytes") continue;  // its unknown characters yield nothing here
    const Trained trained(variant);
    const Tokenizer tokenizer(trained.folder(), trained.model());
    for (const std::string& text : awkward_texts()) {
      const std::vector<int> ids = trained.reference.EncodeAsIds(text);
      EXPECT_EQ(tokenizer.decode(ids), trained.reference.DecodeIds(ids)) << variant.name << ": " << text;
    }
  }
}

TEST(Tokenizer, LlamaSettingsKeepEveryText) {
  const Trained trained(variants()[0]);
  const Tokenizer tokenizer(trained.folder(), trained.model());
  for (const std::string& text : awkward_texts()) {
    if (text.find("\xe2\x96\x81") != text.npos) continue;  // U+2581 itself becomes a space
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(Tokenizer, BosAndEosAsConfigured) {
  const Trained trained(variants()[0]);
  const fs::path config = fs::path(trained.folder()) / "tokenizer_config.json";
  const auto encode = [&](const std::string& settings, ModelConfig model) {
    write(config, settings);
    return Tokenizer(trained.folder(), model).encode("a");
  };
  const std::vector<int> plain = trained.reference.EncodeAsIds("a");
  ASSERT_EQ(plain.size(), 1u);
  const int a = plain[0];
  ModelConfig model = trained.model();
  EXPECT_EQ(encode("{}", model), (std::vector<int>{1, a}));
  EXPECT_EQ(encode(R"({"add_bos_token": false})", model), (std::vector<int>{a}));
  EXPECT_EQ(encode(R"({"add_eos_token": true})", model), (std::vector<int>{1, a, 2}));
  EXPECT_EQ(encode(R"({"bos_token": "</s>"})", model), (std::vector<int>{2, a})) << "the named piece rules";
  EXPECT_EQ(encode(R"({"bos_token": ""})", model), (std::vector<int>{1, a}));
  model.bos_id = 7;
  EXPECT_EQ(encode("{}", model), (std::vector<int>{7, a})) << "then config.json";
  model.bos_id = -1;
  EXPECT_EQ(encode("{}", model), (std::vector<int>{1, a})) << "then the tokenizer's own";
}

TEST(Tokenizer, FindsAFolderOrAFile) {
  const Trained trained(variants()[0]);
  const std::string file = trained.folder() + "/tokenizer.model";
  EXPECT_TRUE(Tokenizer::exists(trained.folder()));
  EXPECT_TRUE(Tokenizer::exists(file));
  EXPECT_FALSE(Tokenizer::exists(trained.folder() + "/other"));
  EXPECT_EQ(Tokenizer(trained.folder(), trained.model()).file(), file);
  EXPECT_EQ(Tokenizer(file, trained.model()).file(), file);
}

TEST(Tokenizer, RefusesByName) {
  const Trained trained(variants()[0]);
  ModelConfig model = trained.model();
  model.vocab_size = 419;
  const std::string file = trained.folder() + "/tokenizer.model";
  const auto message = [&] { return refusal([&] { Tokenizer(trained.folder(), model); }); };
  EXPECT_EQ(message(), file + ": has 420 pieces, but the model's vocab_size is 419");
  model.vocab_size = 500;
  EXPECT_EQ(message(), "") << "a model may have spare rows";
  EXPECT_EQ(Tokenizer(trained.folder(), model).piece(499).text, "");

  write(file, "this is no protocol buffer");
  EXPECT_EQ(message().find(file + ": not a sentencepiece model ("), 0u) << message();
  fs::remove(file);
  EXPECT_EQ(message(), file + " does not exist: text prompts need sentencepiece's tokenizer.model");
  write(fs::path(trained.folder()) / "tokenizer.json", "{}");
  EXPECT_EQ(
      message().find(trained.folder() + " has only tokenizer.json, which is not supported: text prompts"), 0u)
      << message();
}

/// tests/fixtures/tokenizer.jsonl: the bundled tokenizer under Python's sentencepiece.
TEST(Tokenizer, BundledTokenizerAsInPython) {
  const std::string root = PIPEINFER_SOURCE_DIR;
  const Tokenizer tokenizer(root + "/configs/demo_model", load_model_config(root + "/configs/demo_model"));
  std::ifstream lines(root + "/tests/fixtures/tokenizer.jsonl");
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto fixture = nlohmann::json::parse(line);
    std::vector<int32_t> ids = fixture["ids"];
    EXPECT_EQ(tokenizer.decode(ids), fixture["decoded"].get<std::string>()) << line;
    ids.insert(ids.begin(), 1);
    EXPECT_EQ(tokenizer.encode(fixture["text"].get<std::string>()), ids) << line;
  }
  EXPECT_GE(count, 10);
}

}  // namespace
}  // namespace pipeinfer

// Small tokenizers of several settings, trained on the spot, and sentencepiece itself beside them.
#pragma once

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "pipeinfer/base/error.h"
#include "pipeinfer/tokenizer/tokenizer.h"

namespace pipeinfer {

/// The trainer's settings that differ; `llama` is what LLaMA's tokenizers have.
struct Variant {
  std::string name;
  std::string dummy_prefix, remove_extra_whitespaces, byte_fallback;
};

inline const std::vector<Variant>& variants() {
  static const std::vector<Variant> kVariants = {
      {"llama", "true", "false", "true"},
      {"squeezed", "true", "true", "true"},
      {"no_prefix", "false", "false", "true"},
      {"no_bytes", "true", "false", "false"},
  };
  return kVariants;
}

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(std::vector<std::string> list) : list_(std::move(list)) {}
  bool done() const override { return next_ == list_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return list_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> list_;
  size_t next_ = 0;
};

/// A model folder with a trained tokenizer.model, in the tests' temporary folder.
class Trained {
 public:
  explicit Trained(const Variant& variant) {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("pipeinfer_tokenizer_" + std::string(info->test_suite_name()) + info->name() + variant.name);
    std::filesystem::create_directories(folder_);
    std::vector<std::string> sentences;
    for (int i = 0; i < 40; ++i)
      for (const char* text :
           {"In the beginning God created the heaven and the earth.", "a tab\tand  two   spaces",
            "Zürich, naïve 東京 and 🙂", "return value == nullptr ? 0 : value->next();"})
        sentences.push_back(std::to_string(i * 37) + " " + text);
    Sentences iterator(sentences);
    std::string model;
    const auto status = sentencepiece::SentencePieceTrainer::Train(
        std::unordered_map<std::string, std::string>{
            {"model_type", "bpe"},
            {"vocab_size", variant.byte_fallback == "true" ? "420" : "160"},
            {"byte_fallback", variant.byte_fallback},
            {"add_dummy_prefix", variant.dummy_prefix},
            {"remove_extra_whitespaces", variant.remove_extra_whitespaces},
            {"allow_whitespace_only_pieces", "true"},
            {"normalization_rule_name", "identity"},
            {"character_coverage", "0.999"},
            {"minloglevel", "2"}},
        &iterator, &model);
    EXPECT_TRUE(status.ok()) << status.ToString();
    std::ofstream(folder_ / "tokenizer.model", std::ios::binary) << model;
    EXPECT_TRUE(reference.LoadFromSerializedProto(model).ok());
  }
  ~Trained() { std::filesystem::remove_all(folder_); }

  std::string folder() const { return folder_.string(); }

  ModelConfig model() const {
    ModelConfig config;
    config.vocab_size = reference.GetPieceSize();
    config.eos_ids = {2};
    return config;
  }

  sentencepiece::SentencePieceProcessor reference;

 private:
  std::filesystem::path folder_;
};

/// What a call says when it refuses with exit code 2; "" where it does not.
template <typename Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::usage) << e.what();
    return e.what();
  }
  return "";
}

/// Texts that go wrong where a tokenizer is careless.
inline const std::vector<std::string>& awkward_texts() {
  static const std::vector<std::string> kTexts = {
      "",
      " ",
      "   ",
      "In the beginning",
      "  two leading spaces, two  inside, one behind ",
      "a\ttab, a\nnewline, and\r\nboth",
      "Zürich, naïve, 東京, ελληνικά, 🙂 and 👩‍👩‍👧",
      "<s> </s> <unk> <0x41>",
      "\xe2\x96\x81 a lower one eighth block",
      "e\xcc\x81 is two code points",
      std::string("a\0b", 3),
      "\xef\xbf\xbd is the replacement character",
  };
  return kTexts;
}

}  // namespace pipeinfer

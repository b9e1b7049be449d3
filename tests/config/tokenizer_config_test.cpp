#include "pipeinfer/config/tokenizer_config.h"

#include "test_folder.h"

namespace pipeinfer {
namespace {

TEST(TokenizerConfig, DefaultsWithoutAFile) {
  const TestFolder folder;
  const TokenizerConfig config = load_tokenizer_config(folder.path());
  EXPECT_TRUE(config.add_bos_token);
  EXPECT_FALSE(config.add_eos_token);
  EXPECT_EQ(config.bos_token, "");
}

TEST(TokenizerConfig, ReadsBothFormsOfSpecialTokens) {
  const TestFolder folder;
  folder.write("tokenizer_config.json",
               R"({"add_bos_token": false, "add_eos_token": true, "bos_token": "<s>",
                   "eos_token": {"__type": "AddedToken", "content": "</s>"}, "tokenizer_class": "LlamaTokenizer"})");
  const TokenizerConfig config = load_tokenizer_config(folder.path());
  EXPECT_FALSE(config.add_bos_token);
  EXPECT_TRUE(config.add_eos_token);
  EXPECT_EQ(config.bos_token, "<s>");
  EXPECT_EQ(config.eos_token, "</s>");
}

TEST(TokenizerConfig, RefusesByName) {
  const TestFolder folder;
  const auto message = [&](const std::string& text) {
    folder.write("tokenizer_config.json", text);
    return refusal([&] { load_tokenizer_config(folder.path()); });
  };
  EXPECT_NE(message("{").find("tokenizer_config.json: broken JSON"), std::string::npos);
  EXPECT_NE(message(R"({"add_bos_token": "no"})").find("add_bos_token: expected true or false, found \"no\""),
            std::string::npos);
  EXPECT_NE(message(R"({"add_prefix_space": false})").find("add_prefix_space: expected true, found false"),
            std::string::npos);
}

}  // namespace
}  // namespace pipeinfer

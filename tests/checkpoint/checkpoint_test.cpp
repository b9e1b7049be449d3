#include "pipeinfer/checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include "safetensors_builder.h"

namespace pipeinfer {
namespace {

using test::bytes_of;
using test::expect_usage_error;
using test::safetensors;

/// A file that holds one F32 tensor [2, 2].
std::string file_with(const std::string& name, const std::vector<float>& values) {
  return safetensors("{\"" + name + R"(":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})",
                     bytes_of(values));
}

class CheckpointTest : public testing::Test {
 protected:
  void write_index(const std::string& weight_map) {
    folder_.write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":" + weight_map + "}");
  }
  void expect_refused(const std::vector<std::string>& parts) {
    expect_usage_error([&] { Checkpoint checkpoint(folder_.path()); }, parts);
  }
  test::TestFolder folder_;
};

TEST_F(CheckpointTest, OneFile) {
  folder_.write("model.safetensors", file_with("w", {1, 2, 3, 4}));
  const Checkpoint checkpoint(folder_.path());
  EXPECT_EQ(checkpoint.names(), std::vector<std::string>{"w"});
  EXPECT_EQ(checkpoint.find("v"), nullptr);
  EXPECT_EQ(checkpoint.require("w", {2, 2}).elements, 4);
  std::vector<uint16_t> values(4);
  checkpoint.read("w", DType::bf16, values.data());
  EXPECT_EQ(values, (std::vector<uint16_t>{0x3f80, 0x4000, 0x4040, 0x4080}));
  EXPECT_EQ(checkpoint.bytes_read(), 16u);
}

TEST_F(CheckpointTest, OneFileOfAnotherName) {
  folder_.write("weights.safetensors", file_with("w", {1, 2, 3, 4}));
  EXPECT_NE(Checkpoint(folder_.path()).find("w"), nullptr);
  folder_.write("more.safetensors", file_with("v", {1, 2, 3, 4}));
  expect_refused({folder_.path(), "2 safetensors files", "model.safetensors.index.json"});
}

TEST_F(CheckpointTest, RequireSaysWhatItExpectsAndFinds) {
  folder_.write("model.safetensors", safetensors(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                                 R"("i":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}})",
                                                 std::string(16, '\0')));
  const Checkpoint checkpoint(folder_.path());
  expect_usage_error(
      [&] {
        checkpoint.require("w", {2, 1});
      },
      {"model.safetensors", "tensor w", "shape [2]", "expected [2, 1]"});
  expect_usage_error([&] { checkpoint.require("x", {2}); }, {"model.safetensors", "no tensor x", "[2]"});
  expect_usage_error([&] { checkpoint.require("i", {1}); }, {"tensor i", "I64", "expected F32, F16 or BF16"});
  float value = 0;
  expect_usage_error([&] { checkpoint.read("x", DType::fp32, &value); }, {"no tensor x"});
}

TEST_F(CheckpointTest, ShardsAreOpenedWhenNeeded) {
  folder_.write("one.safetensors", file_with("a", {1, 2, 3, 4}));
  folder_.write("two.safetensors", "broken");
  write_index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  const Checkpoint checkpoint(folder_.path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b"}));
  std::vector<float> row(2);
  checkpoint.read("a", 2, 2, DType::fp32, row.data());
  EXPECT_EQ(row, (std::vector<float>{3, 4}));
  expect_usage_error([&] { checkpoint.find("b"); }, {"two.safetensors"});
}

TEST_F(CheckpointTest, IndexMustAgreeWithItsShards) {
  folder_.write("one.safetensors", file_with("a", {1, 2, 3, 4}));
  write_index(R"({"a":"one.safetensors","b":"one.safetensors"})");
  const Checkpoint checkpoint(folder_.path());
  expect_usage_error([&] { checkpoint.find("a"); },
                     {"index.json", "tensor b", "one.safetensors", "does not hold"});
  write_index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  expect_refused({"index.json", "two.safetensors", "not in the folder"});
}

TEST_F(CheckpointTest, ShardNamesStayInTheFolder) {
  for (const char* name :
       {"/etc/passwd", "../x.safetensors", "sub/x.safetensors", "..", ".", "", "a\\\\b", "x\\u0000y"}) {
    write_index(std::string("{\"a\":\"") + name + "\"}");
    expect_refused({"index.json", "tensor a", "expected the name of a file in the same folder"});
  }
}

TEST_F(CheckpointTest, BrokenIndex) {
  write_index("{");
  expect_refused({"index.json", "broken JSON"});
  write_index("[]");
  expect_refused({"weight_map"});
  write_index("{}");
  expect_refused({"weight_map"});
  write_index(R"({"a":3})");
  expect_refused({"tensor a", "number", "expected a file name"});
  write_index(R"({"a":"x","a":"y"})");
  expect_refused({"key \"a\" twice"});
  folder_.write("model.safetensors.index.json", "[1]");
  expect_refused({"weight_map"});
}

TEST_F(CheckpointTest, FolderWithoutSafetensors) {
  expect_usage_error([&] { Checkpoint checkpoint(folder_.path() + "/none"); }, {"/none", "does not exist"});
  expect_refused({folder_.path(), "no model.safetensors"});
  folder_.write("pytorch_model-00001-of-00002.bin", "x");
  expect_refused({folder_.path(), "pytorch_model*.bin", "scripts/convert_checkpoint.py"});
}

TEST_F(CheckpointTest, HeaderHashFollowsTheHeadersOfAllShards) {
  folder_.write("one.safetensors", file_with("a", {1, 2, 3, 4}));
  folder_.write("two.safetensors", file_with("b", {1, 2, 3, 4}));
  write_index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  const uint64_t before = Checkpoint(folder_.path()).header_hash();
  EXPECT_EQ(Checkpoint(folder_.path()).header_hash(), before);
  folder_.write("two.safetensors", safetensors(R"({"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
                                               std::string(16, '\0')));
  EXPECT_NE(Checkpoint(folder_.path()).header_hash(), before);
}

}  // namespace
}  // namespace pipeinfer

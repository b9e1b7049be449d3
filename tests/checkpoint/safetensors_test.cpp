#include "pipeinfer/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include "safetensors_builder.h"

namespace pipeinfer {
namespace {

using test::bytes_of;
using test::expect_usage_error;
using test::safetensors;
using test::TestFolder;

class Safetensors : public testing::Test {
 protected:
  /// Opening a file of these bytes must fail; the message names the file and holds `parts`.
  void expect_refused(const std::string& bytes, std::vector<std::string> parts) {
    const std::string path = folder_.write("bad.safetensors", bytes);
    parts.push_back(path);
    expect_usage_error([&] { SafetensorsFile file(path); }, parts);
  }
  /// The same for a header with `data_bytes` zeros behind it.
  void expect_header_refused(const std::string& header, size_t data_bytes,
                             const std::vector<std::string>& parts) {
    expect_refused(safetensors(header, std::string(data_bytes, '\0')), parts);
  }

  TestFolder folder_;
};

TEST_F(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  const std::vector<float> a = {1, 2, 3, 4, 5, 6};
  const std::vector<uint16_t> b = {0x3c00, 0xc000};
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[24,28]},)"
      R"("a":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},"none":{"dtype":"I64","shape":[0,7],)"
      R"("data_offsets":[24,24]},"scalar":{"dtype":"U8","shape":[],"data_offsets":[28,29]}}   )";
  const SafetensorsFile file(
      folder_.write("a.safetensors", safetensors(header, bytes_of(a) + bytes_of(b) + "x")));
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(shape_text(file.tensors()[0].shape), "[3, 2]");
  EXPECT_EQ(file.tensors()[1].elements, 0);
  EXPECT_EQ(file.tensors()[2].dtype, DType::fp16);
  EXPECT_EQ(file.tensors()[3].elements, 1);
  EXPECT_EQ(file.tensors()[3].dtype, std::nullopt);

  std::vector<float> row(2);
  file.read(file.tensors()[0], 2, 2, DType::fp32, row.data());
  EXPECT_EQ(row, (std::vector<float>{3, 4}));
  std::vector<float> widened(2);
  file.read(file.tensors()[2], 0, 2, DType::fp32, widened.data());
  EXPECT_EQ(widened, (std::vector<float>{1, -2}));
  EXPECT_EQ(file.bytes_read(), 12u);
  char byte = 0;
  expect_usage_error([&] { file.read(file.tensors()[3], 0, 1, DType::fp32, &byte); },
                     {"a.safetensors", "tensor scalar", "U8", "expected F32, F16 or BF16"});
  EXPECT_THROW(file.read(file.tensors()[0], 5, 2, DType::fp32, row.data()), Error);
}

TEST_F(Safetensors, ConvertsInPiecesOfItsStagingBuffer) {
  const size_t n = (4 << 20) / 4 * 2 + 3;  // two full pieces and a rest
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = static_cast<float>(i % 2048);
  const std::string header = R"({"w":{"dtype":"F32","shape":[)" + std::to_string(n) +
                             R"(],"data_offsets":[0,)" + std::to_string(4 * n) + "]}}";
  const SafetensorsFile file(folder_.write("w.safetensors", safetensors(header, bytes_of(values))));
  std::vector<uint16_t> halves(n);
  file.read(file.tensors()[0], 0, static_cast<int64_t>(n), DType::fp16, halves.data());
  EXPECT_EQ(halves[0], 0x0000);
  EXPECT_EQ(halves[1], 0x3c00);
  EXPECT_EQ(halves[(4 << 20) / 4], 0x0000);  // i % 2048 == 0 again
  EXPECT_EQ(halves[n - 2], 0x3c00);
  EXPECT_EQ(halves[n - 1], 0x4000);
}

TEST_F(Safetensors, RefusesWhatIsNoSafetensorsFile) {
  expect_usage_error([&] { SafetensorsFile file(folder_.path() + "/missing"); }, {"cannot open", "missing"});
  expect_usage_error([&] { SafetensorsFile file(folder_.path()); }, {"no regular file"});
  expect_refused("", {"0 bytes"});
  expect_refused("1234567", {"7 bytes"});
  expect_refused(safetensors("{}", "", 3), {"3 bytes", "only 2 follow", "truncated"});
  expect_refused(safetensors("{}", "", 200'000'000), {"200000000", "at most 100000000"});
  expect_refused(safetensors("{}", "", INT64_MAX), {"at most 100000000"});
  expect_refused(safetensors("", ""), {"header is broken JSON"});
  expect_refused(safetensors("[]", ""), {"header is array", "expected an object"});
  expect_refused(safetensors("{\"a\":", ""), {"broken JSON at byte 6 of 5"});
  expect_refused(safetensors("{\"\xff\":{}}", ""), {"broken JSON"});
  expect_refused(safetensors(std::string(1'000'000, '['), ""), {"nests more than 8 levels"});
}

TEST_F(Safetensors, RefusesBrokenEntries) {
  const auto entry = [](const std::string& fields) { return "{\"w\":{" + fields + "}}"; };
  expect_header_refused(R"({"w":3})", 0, {"tensor w is number", "expected an object"});
  expect_header_refused(R"({"__metadata__":3})", 0, {"__metadata__ is number"});
  expect_header_refused(entry(R"("shape":[1],"data_offsets":[0,4])"), 4, {"tensor w has no \"dtype\""});
  expect_header_refused(entry(R"("dtype":1,"shape":[1],"data_offsets":[0,4])"), 4,
                        {"\"dtype\" that is number"});
  expect_header_refused(entry(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), 4,
                        {"unknown dtype \"F31\""});
  expect_header_refused(entry(R"("dtype":"F32","shape":4,"data_offsets":[0,4])"), 4,
                        {"\"shape\" that is number"});
  expect_header_refused(entry(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4,
                        {"dimension that is -1"});
  expect_header_refused(entry(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), 4,
                        {"dimension that is 1.0"});
  expect_header_refused(entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])"), 4,
                        {"too large"});
  expect_header_refused(entry(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])"), 4,
                        {"data_offsets [-4,0]"});
  expect_header_refused(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0.5,4.5])"), 4, {"two integers"});
  expect_header_refused(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"), 4, {"two integers"});
  expect_header_refused(entry(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4, {"begin <= end"});
  expect_header_refused(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4,
                        {"spans 4 bytes", "expected 8", "[2] of F32"});
}

TEST_F(Safetensors, RefusesTensorsThatDoNotCoverTheFile) {
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  expect_header_refused("{" + a + "}", 7, {"tensor a ends at byte 8", "holds only 7", "truncated"});
  expect_header_refused("{" + a + "}", 9, {"the last tensor ends at byte", "the file has"});
  expect_header_refused("{" + a + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12,
                        {"tensor b begins at byte 4", "overlaps tensor a", "byte 8"});
  expect_header_refused("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", 16,
                        {"tensor b begins at byte 12", "expected byte 8", "no holes"});
  expect_header_refused("{" + a + "," + a + "}", 8, {"key \"a\" twice"});
  expect_header_refused(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
                        {"key \"dtype\" twice"});
}

}  // namespace
}  // namespace pipeinfer

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <tuple>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/checkpoint/safetensors.h"
#include "strict_json.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;

struct StoredType {
  const char* name;
  uint64_t size;  // bytes of an element
  std::optional<DType> dtype;
};
constexpr std::array<StoredType, 16> kStoredTypes = {{
    {"F32", 4, DType::fp32},
    {"F16", 2, DType::fp16},
    {"BF16", 2, DType::bf16},
    {"F64", 8, {}},
    {"I64", 8, {}},
    {"U64", 8, {}},
    {"I32", 4, {}},
    {"U32", 4, {}},
    {"I16", 2, {}},
    {"U16", 2, {}},
    {"I8", 1, {}},
    {"U8", 1, {}},
    {"BOOL", 1, {}},
    {"F8_E4M3", 1, {}},
    {"F8_E5M2", 1, {}},
    {"F8_E8M0", 1, {}},
}};

/// a * b into `product`, false where it overflows.
bool multiply(uint64_t a, uint64_t b, uint64_t& product) { return !__builtin_mul_overflow(a, b, &product); }

/// Checks one entry of the header by itself.
TensorInfo parse_tensor(const std::string& file, const std::string& name, const json& entry,
                        uint64_t data_start, uint64_t data_bytes) {
  const auto fail = [&](const auto&... what) { usage_error(cat(file, ": tensor ", name, " ", what...)); };
  const auto field = [&](const char* key, bool (json::*is)() const noexcept,
                         const char* expected) -> const json& {
    const auto it = entry.find(key);
    if (it == entry.end()) fail("has no \"", key, "\"");
    if (!((*it).*is)()) fail("has a \"", key, "\" that is ", it->type_name(), ", expected ", expected);
    return *it;
  };
  if (!entry.is_object()) fail("is ", entry.type_name(), ", expected an object");

  TensorInfo tensor;
  tensor.name = name;
  tensor.stored = field("dtype", &json::is_string, "a string").get<std::string>();
  const auto type = std::find_if(kStoredTypes.begin(), kStoredTypes.end(),
                                 [&](const StoredType& known) { return tensor.stored == known.name; });
  if (type == kStoredTypes.end()) fail("has the unknown dtype \"", tensor.stored, "\"");
  tensor.dtype = type->dtype;

  uint64_t elements = 1;
  uint64_t expected = type->size;
  for (const json& dim : field("shape", &json::is_array, "a list")) {
    if (!dim.is_number_unsigned())
      fail("has a dimension that is ", dim.dump(), ", expected an integer from 0");
    const auto size = dim.get<uint64_t>();
    if (size > INT64_MAX || !multiply(elements, size, elements) || !multiply(elements, type->size, expected))
      fail("has a shape too large to count its bytes");
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  tensor.elements = static_cast<int64_t>(elements);

  const json& span = field("data_offsets", &json::is_array, "[begin, end]");
  if (span.size() != 2 || !span[0].is_number_unsigned() || !span[1].is_number_unsigned())
    fail("has the data_offsets ", span.dump(-1, ' ', false, json::error_handler_t::replace),
         ", expected two integers from 0");
  const auto begin = span[0].get<uint64_t>(), end = span[1].get<uint64_t>();
  if (begin > end) fail("has the data_offsets ", span.dump(), ", expected begin <= end");
  if (end - begin != expected)
    fail("spans ", end - begin, " bytes, expected ", expected, " for ", shape_text(tensor.shape), " of ",
         tensor.stored);
  if (end > data_bytes)
    fail("ends at byte ", end, " of the data, but the file holds only ", data_bytes, ": it is truncated");
  tensor.offset = data_start + begin;
  tensor.bytes = expected;
  return tensor;
}

/// The tensors must cover the data exactly, one after another.
void check_cover(const std::string& file, std::vector<TensorInfo>& tensors, uint64_t data_start,
                 uint64_t file_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  uint64_t end = data_start;
  const TensorInfo* before = nullptr;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset < end)
      usage_error(cat(file, ": tensor ", tensor.name, " begins at byte ", tensor.offset - data_start,
                      " of the data and overlaps tensor ", before->name, ", which ends at byte ",
                      end - data_start));
    if (tensor.offset > end)
      usage_error(cat(file, ": tensor ", tensor.name, " begins at byte ", tensor.offset - data_start,
                      " of the data, expected byte ", end - data_start, ": the format allows no holes"));
    end = tensor.offset + tensor.bytes;
    before = &tensor;
  }
  if (end != file_bytes)
    usage_error(
        cat(file, ": the last tensor ends at byte ", end, ", but the file has ", file_bytes, " bytes"));
}

}  // namespace

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (int64_t dim : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "]";
}

uint64_t safetensors_header_length(const std::string& file, std::span<const std::byte> first,
                                   uint64_t file_bytes) {
  if (first.size() < kLengthBytes || file_bytes < kLengthBytes)
    usage_error(cat(file, " has ", file_bytes,
                    " bytes, expected a safetensors file: at least 8 bytes of header length"));
  uint64_t length = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) length = length << 8 | std::to_integer<uint64_t>(first[i]);
  if (length > kMaxSafetensorsHeader)
    usage_error(cat(file, " says that its header has ", length, " bytes, expected at most ",
                    kMaxSafetensorsHeader, ": it is no safetensors file or damaged"));
  if (length > file_bytes - kLengthBytes)
    usage_error(cat(file, " says that its header has ", length, " bytes, but only ",
                    file_bytes - kLengthBytes, " follow: it is truncated"));
  return length;
}

std::vector<TensorInfo> parse_safetensors_header(const std::string& file, std::string_view header,
                                                 uint64_t file_bytes) {
  const uint64_t data_start = kLengthBytes + header.size();
  const json entries = parse_strict_json(cat(file, ": the header"), header);
  if (!entries.is_object())
    usage_error(cat(file, ": the header is ", entries.type_name(), ", expected an object"));
  std::vector<TensorInfo> tensors;
  tensors.reserve(entries.size());
  for (const auto& [name, entry] : entries.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object())
        usage_error(cat(file, ": __metadata__ is ", entry.type_name(), ", expected an object"));
      continue;
    }
    tensors.push_back(parse_tensor(file, name, entry, data_start, file_bytes - data_start));
  }
  check_cover(file, tensors, data_start, file_bytes);
  return tensors;
}

}  // namespace pipeinfer

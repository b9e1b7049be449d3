// One safetensors file: 8 bytes of header length (little-endian), a JSON header, then the tensors' bytes
// without holes (https://huggingface.co/docs/safetensors, "Format"). Nothing in the file is believed before
// it is checked.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pipeinfer/base/types.h"

namespace pipeinfer {

/// Where a tensor lies in its file. Row-major, little-endian.
struct TensorInfo {
  std::string name;
  std::string stored;          ///< element type as the file spells it: "F32", "F16", "BF16", "I64", ...
  std::optional<DType> dtype;  ///< the same for the types that weights may have; nothing for any other
  std::vector<int64_t> shape;  ///< empty for a scalar
  int64_t elements = 0;        ///< product of the shape
  uint64_t offset = 0;         ///< first byte, from the start of the file
  uint64_t bytes = 0;          ///< elements x bytes of an element
};

/// "[32000, 3200]".
std::string shape_text(std::span<const int64_t> shape);

/// Largest header that is read: the limit of the format's reference implementation.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

/// The header's length from the first 8 bytes of a file of `file_bytes` bytes. Throws Error(usage) where
/// there are fewer than 8, or where it is over the limit or over what the file holds. `file` only names the
/// file in errors.
uint64_t safetensors_header_length(const std::string& file, std::span<const std::byte> first,
                                   uint64_t file_bytes);

/// The tensors of a header, in the order of their bytes. Throws Error(usage) that names file, tensor,
/// expected and found: broken JSON, a repeated name, an unknown dtype, a span that is not shape x dtype,
/// overlaps, holes, bytes beyond the end of the file.
std::vector<TensorInfo> parse_safetensors_header(const std::string& file, std::string_view header,
                                                 uint64_t file_bytes);

/// An open file whose header is checked. Reads are thread-safe.
class SafetensorsFile {
 public:
  /// Throws Error(usage).
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  uint64_t header_hash() const { return header_hash_; }
  uint64_t bytes_read() const { return bytes_read_; }

  /// Reads elements [first, first + count) as `to` into `values`, by large sequential preads, converting on
  /// the way (rounding to nearest even). Throws Error(usage) where the tensor's type is none of F32, F16,
  /// BF16, or the file cannot be read.
  void read(const TensorInfo& tensor, int64_t first, int64_t count, DType to, void* values) const;

 private:
  void read_bytes(uint64_t offset, uint64_t bytes, void* to) const;

  std::string path_;
  int fd_ = -1;
  uint64_t header_hash_ = 0;
  std::vector<TensorInfo> tensors_;
  mutable std::atomic<uint64_t> bytes_read_ = 0;
};

}  // namespace pipeinfer

// The safetensors header and the shard index on any bytes: an Error(usage), or tensors that lie in the file
// one after another. The bytes are a whole small file; the same bytes are also read as an index.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "pipeinfer/base/error.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/checkpoint/safetensors.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

template <typename Call>
void allow_usage_error(Call call) {
  try {
    call();
  } catch (const pipeinfer::Error& error) {
    require(error.code() == pipeinfer::ExitCode::usage && error.what()[0] != '\0');
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pipeinfer;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  allow_usage_error([&] {
    const auto first = std::as_bytes(std::span(data, size)).first(size < 8 ? size : 8);
    const uint64_t length = safetensors_header_length("file", first, size);
    require(length + 8 <= size);
    uint64_t end = 8 + length;
    for (const TensorInfo& tensor : parse_safetensors_header("file", text.substr(8, length), size)) {
      require(tensor.offset == end && tensor.bytes <= size - end);
      if (tensor.dtype)
        require(tensor.bytes == static_cast<uint64_t>(tensor.elements) * dtype_size(*tensor.dtype));
      end += tensor.bytes;
    }
    require(end == size);
  });
  allow_usage_error([&] {
    for (const auto& [tensor, shard] : parse_shard_index("index", text))
      require(!shard.empty() && shard != ".." && shard.find('/') == std::string::npos);
  });
  return 0;
}

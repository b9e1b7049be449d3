#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/hash.h"
#include "pipeinfer/checkpoint/convert.h"
#include "pipeinfer/checkpoint/safetensors.h"

namespace pipeinfer {
namespace {

constexpr uint64_t kReadBytes = 64 << 20;    // one pread; Linux moves at most 2 GiB at once
constexpr uint64_t kStagingBytes = 4 << 20;  // of what is converted: stays in the cache

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path)
    : path_(path), fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (fd_ < 0) usage_error(cat("cannot open ", path, ": ", std::strerror(errno)));
  try {
    struct stat status {};
    if (fstat(fd_, &status) != 0) usage_error(cat("cannot stat ", path, ": ", std::strerror(errno)));
    if (!S_ISREG(status.st_mode)) usage_error(cat(path, " is no regular file"));
    posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);
    const auto file_bytes = static_cast<uint64_t>(status.st_size);
    std::array<std::byte, 8> first{};
    const auto there = std::min<uint64_t>(first.size(), file_bytes);
    read_bytes(0, there, first.data());
    std::string header(safetensors_header_length(path, std::span(first).first(there), file_bytes), '\0');
    read_bytes(first.size(), header.size(), header.data());
    tensors_ = parse_safetensors_header(path, header, file_bytes);
    header_hash_ = hash64(header);
  } catch (...) {
    close(fd_);
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() { close(fd_); }

void SafetensorsFile::read_bytes(uint64_t offset, uint64_t bytes, void* to) const {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = pread(fd_, at, std::min(bytes, kReadBytes), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) usage_error(cat("cannot read ", path_, " at byte ", offset, ": ", std::strerror(errno)));
    if (got == 0) usage_error(cat(path_, " ends at byte ", offset, ": it became shorter while it was read"));
    at += got;
    offset += got;
    bytes -= got;
  }
}

void SafetensorsFile::read(const TensorInfo& tensor, int64_t first, int64_t count, DType to,
                           void* values) const {
  if (!tensor.dtype)
    usage_error(
        cat(path_, ": tensor ", tensor.name, " has dtype ", tensor.stored, ", expected F32, F16 or BF16"));
  PI_CHECK(first >= 0 && count >= 0 && first <= tensor.elements - count, tensor.name, ": elements ", first,
           " + ", count, " of ", tensor.elements);
  const uint64_t size = dtype_size(*tensor.dtype);
  const uint64_t offset = tensor.offset + first * size;
  bytes_read_ += count * size;
  if (*tensor.dtype == to) return read_bytes(offset, count * size, values);

  const auto step = std::min<int64_t>(count, kStagingBytes / size);
  const auto staging = std::make_unique_for_overwrite<std::byte[]>(step * size);
  for (int64_t done = 0; done < count; done += step) {
    const int64_t n = std::min(step, count - done);
    read_bytes(offset + done * size, n * size, staging.get());
    convert(staging.get(), *tensor.dtype, static_cast<std::byte*>(values) + done * dtype_size(to), to, n);
  }
}

}  // namespace pipeinfer

#include "atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/io/output_dir.h"

namespace pipeinfer {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

}  // namespace

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

AtomicFile::AtomicFile(const std::string& path)
    : path_(path),
      temporary_(path + ".tmp"),
      fd_(open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (fd_ < 0) fail();
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) close(fd_);
  if (!committed_) unlink(temporary_.c_str());
}

void AtomicFile::fail() { runtime_failure(cat("cannot write ", path_, ": ", std::strerror(errno))); }

void AtomicFile::flush() {
  if (!write_all(fd_, buffer_)) fail();
  buffer_.clear();
}

void AtomicFile::write(std::string_view bytes) {
  buffer_ += bytes;
  if (buffer_.size() >= kBufferBytes) flush();
}

void AtomicFile::commit() {
  flush();
  if (fsync(fd_) != 0) fail();
  const int closed = close(std::exchange(fd_, -1));  // NFS tells of a full disk only here
  if (closed != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) fail();
  committed_ = true;
}

void write_file(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace pipeinfer

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "atomic_file.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/io/completions.h"

namespace pipeinfer {
namespace {

/// Bytes up to and with the last end of line among the first `size`; -1 where the file cannot be read.
int64_t whole_lines(int fd, int64_t size) {
  char block[4096];
  while (size > 0) {
    const int64_t start = std::max<int64_t>(0, size - static_cast<int64_t>(sizeof block));
    const ssize_t got = pread(fd, block, static_cast<size_t>(size - start), start);
    if (got != size - start) return -1;
    if (const void* end = memrchr(block, '\n', static_cast<size_t>(got)))
      return start + (static_cast<const char*>(end) - block) + 1;
    size = start;
  }
  return 0;
}

}  // namespace

ResultWriter::ResultWriter(const std::string& output_dir, int rank)
    : path_(cat(output_dir, "/completions_rank_", rank, ".jsonl")),
      fd_(open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  const off_t size = fd_ < 0 ? -1 : lseek(fd_, 0, SEEK_END);
  size_ = size < 0 ? -1 : whole_lines(fd_, size);
  if (size_ < 0 || (size_ < size && ftruncate(fd_, size_) != 0)) {
    const std::string reason = std::strerror(errno);
    if (fd_ >= 0) close(fd_);
    usage_error(cat("cannot write ", path_, ": ", reason));
  }
}

ResultWriter::~ResultWriter() { close(fd_); }

void ResultWriter::write(const CompletionRecord& record) {
  const std::string line = to_json_line(record) + "\n";
  if (!write_all(fd_, line)) {
    const std::string reason = std::strerror(errno);
    // Where even this fails, the torn line has no end: readers drop it.
    if (ftruncate(fd_, size_) != 0)
      runtime_failure(cat("cannot write ", path_, ": ", reason, ", and its last line is torn"));
    runtime_failure(cat("cannot write ", path_, ": ", reason));
  }
  size_ += static_cast<int64_t>(line.size());
}

}  // namespace pipeinfer

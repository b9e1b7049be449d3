// A file that appears whole or not at all: a temporary one beside it, fsync, rename.
#pragma once

#include <string>
#include <string_view>

namespace pipeinfer {

class AtomicFile {
 public:
  /// Throws Error(failed), as all of it does, naming the file and the reason.
  explicit AtomicFile(const std::string& path);
  /// Removes the temporary file where `commit` was not reached.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::string_view bytes);
  void commit();

 private:
  void flush();
  [[noreturn]] void fail();

  std::string path_;
  std::string temporary_;
  std::string buffer_;
  int fd_ = -1;
  bool committed_ = false;
};

/// Writes all of `bytes`. False, with errno, where that failed.
bool write_all(int fd, std::string_view bytes);

}  // namespace pipeinfer

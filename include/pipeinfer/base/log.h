// The log of one rank. spdlog stays behind this header: its fmt differs from the one LibTorch carries.
#pragma once

#include <memory>
#include <string>

#include "pipeinfer/base/text.h"

namespace pipeinfer {

enum class LogLevel { debug, info, warn, error };

/// Thread-safe. Writes every line, with time, rank and level, to `rank_<r>.log` once `open` was called; warnings
/// also go to stderr as "pipeinfer: warning: ...". Errors for the user go to stderr through `fatal` only.
class Log {
 public:
  explicit Log(int rank = 0);
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  /// Starts (or continues) the file at `path`; lines logged before are written first. Throws Error(usage).
  void open(const std::string& path);

  template <typename... Args>
  void info(const Args&... args) {
    write(LogLevel::info, cat(args...));
  }
  template <typename... Args>
  void warn(const Args&... args) {
    write(LogLevel::warn, cat(args...));
  }
  template <typename... Args>
  void debug(const Args&... args) {
    write(LogLevel::debug, cat(args...));
  }

  /// The sentence that a failing program leaves: to the file and, flushed, to stderr as "pipeinfer: <message>".
  void fatal(const std::string& message);

  void flush();

 private:
  void write(LogLevel level, const std::string& message);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pipeinfer

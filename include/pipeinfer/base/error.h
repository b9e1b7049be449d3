// The one exception type, and the exit codes it stands for. Broken invariants of our own are check.h's business.
#pragma once

#include <stdexcept>
#include <string>

namespace pipeinfer {

/// Exit codes of the program; scripts and Slurm jobs rely on them.
enum class ExitCode : int {
  ok = 0,        ///< all prompts done
  failed = 1,    ///< failed while running: a full disk, a lost rank, out of memory
  usage = 2,     ///< could not start as asked: usage, configuration, checkpoint, prompts file, output folder
  rejected = 3,  ///< finished, but some prompts were rejected
  stopped = 75,  ///< stopped early by a signal, resumable (EX_TEMPFAIL of sysexits.h)
};

/// What a user is told, in one clear sentence that names the file, line, field or rank, and the exit code it means.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

/// Throws what makes the program exit with 2.
[[noreturn]] void usage_error(const std::string& message);

/// Throws what makes the program exit with 1.
[[noreturn]] void runtime_failure(const std::string& message);

}  // namespace pipeinfer

#include "pipeinfer/base/error.h"

#include "pipeinfer/base/check.h"

namespace pipeinfer {

void usage_error(const std::string& message) { throw Error(ExitCode::usage, message); }

void runtime_failure(const std::string& message) { throw Error(ExitCode::failed, message); }

void check_failed(const char* expression, const char* file, int line, const std::string& message) {
  throw Error(ExitCode::failed,
              cat("internal error: ", expression, " does not hold (", file, ":", line, ") ", message));
}

}  // namespace pipeinfer

// Assertions of our own invariants, on in every build. For what a user can cause, throw Error instead.
#pragma once

#include "pipeinfer/base/text.h"

namespace pipeinfer {

/// Throws Error(failed) with "internal error: <expression> (<file>:<line>) <message>".
[[noreturn]] void check_failed(const char* expression, const char* file, int line,
                               const std::string& message);

}  // namespace pipeinfer

/// PI_CHECK(a == b, "a is ", a): states what must hold, and prints the rest where it does not.
#define PI_CHECK(condition, ...)                                                                \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::pipeinfer::check_failed(#condition, __FILE__, __LINE__, ::pipeinfer::cat(__VA_ARGS__)); \
  } while (false)

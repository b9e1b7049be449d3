// String building without fmt: cat("rank ", 3, " of ", 4).
#pragma once

#include <sstream>
#include <string>

namespace pipeinfer {

/// Everything that an ostream prints, one after another.
template <typename... Args>
std::string cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace pipeinfer

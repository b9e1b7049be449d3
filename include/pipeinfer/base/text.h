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

inline std::string cat() { return {}; }

/// counted(1, "stage") is "1 stage", counted(2, "stage") "2 stages".
inline std::string counted(long long n, const std::string& noun) {
  return cat(n, " ", noun, n == 1 ? "" : "s");
}

}  // namespace pipeinfer

// The names of a run's files, and why one cannot be read.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <string_view>

namespace pipeinfer {

/// The rank in "<prefix><rank><suffix>", or nothing where `name` is not of this form.
std::optional<int> rank_in_name(std::string_view name, std::string_view prefix, std::string_view suffix);

/// What nlohmann's exception says, without its "[json.exception.parse_error.101] ".
inline std::string json_reason(const std::exception& e) {
  const std::string what = e.what();
  const size_t bracket = what.find("] ");
  return bracket == std::string::npos ? what : what.substr(bracket + 2);
}

}  // namespace pipeinfer

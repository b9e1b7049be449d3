// JSON of the checkpoint layer: a repeated key is an error (nlohmann keeps the last one), and so is deep
// nesting.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace pipeinfer {

/// Most levels of objects and arrays: the formats need three.
inline constexpr int kMaxJsonDepth = 8;

/// Parses `text`. Throws Error(usage) "<what> <what is wrong>".
nlohmann::json parse_strict_json(const std::string& what, std::string_view text);

}  // namespace pipeinfer

// A JSON object of a file, read key by key; every error names file, key, expected and found.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace pipeinfer {

/// A value as an error shows it: JSON text, cut where it is long.
std::string shown(const nlohmann::json& value);

/// A key that is null counts as one that is absent, as in transformers. All members throw Error(usage).
class JsonObject {
 public:
  /// Reads a whole file that must hold one JSON object.
  static JsonObject read(const std::string& path);

  /// `prefix` names the object inside the file ("rope_scaling.").
  JsonObject(std::string path, nlohmann::json value, std::string prefix = "");

  const std::string& path() const { return path_; }
  const nlohmann::json& value() const { return value_; }
  bool has(std::string_view key) const;
  /// The value, or null where there is none.
  const nlohmann::json& at(std::string_view key) const;

  int32_t integer(std::string_view key, int32_t min, int32_t max) const;
  int32_t integer_or(std::string_view key, int32_t fallback, int32_t min, int32_t max) const;
  /// Finite, and at least `min`.
  double number(std::string_view key, double min) const;
  double number_or(std::string_view key, double fallback, double min) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  std::string text_or(std::string_view key, const std::string& fallback) const;
  JsonObject object(std::string_view key) const;

  [[noreturn]] void missing(std::string_view key) const;
  /// "<file>: <key>: expected <expected>, found <value>".
  [[noreturn]] void wrong(std::string_view key, const std::string& expected) const;

 private:
  std::string path_;
  nlohmann::json value_;
  std::string prefix_;
};

}  // namespace pipeinfer

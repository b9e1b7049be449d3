#include "json_file.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {

using nlohmann::json;

std::string shown(const json& value) {
  constexpr size_t kLongest = 80;
  std::string text = value.dump(-1, ' ', true);  // ASCII: cutting never splits a character
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  return text;
}

JsonObject JsonObject::read(const std::string& path) {
  if (std::filesystem::is_directory(path)) usage_error(cat(path, ": expected a JSON file, found a folder"));
  std::ifstream file(path, std::ios::binary);
  if (!file) usage_error(cat(path, ": cannot be opened: ", std::strerror(errno)));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) usage_error(cat(path, ": cannot be read"));
  try {
    return JsonObject(path, json::parse(text));
  } catch (const json::exception& e) {
    const std::string_view what = e.what();  // "[json.exception.parse_error.101] parse error at line ..."
    const size_t bracket = what.find("] ");
    usage_error(cat(path, ": broken JSON: ", bracket == what.npos ? what : what.substr(bracket + 2)));
  }
}

JsonObject::JsonObject(std::string path, json value, std::string prefix)
    : path_(std::move(path)), value_(std::move(value)), prefix_(std::move(prefix)) {
  if (!value_.is_object()) usage_error(cat(path_, ": expected a JSON object, found ", shown(value_)));
}

const json& JsonObject::at(std::string_view key) const {
  static const json kNull;
  const auto found = value_.find(key);
  return found == value_.end() ? kNull : *found;
}

bool JsonObject::has(std::string_view key) const { return !at(key).is_null(); }

int32_t JsonObject::integer(std::string_view key, int32_t min, int32_t max) const {
  const json& value = at(key);
  if (value.is_null()) missing(key);
  // Unsigned values above int64 would wrap in get<int64_t>.
  const bool fits =
      value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
  if (!fits || value.get<int64_t>() < min || value.get<int64_t>() > max)
    wrong(key, cat("an integer from ", min, " to ", max));
  return value.get<int32_t>();
}

int32_t JsonObject::integer_or(std::string_view key, int32_t fallback, int32_t min, int32_t max) const {
  return has(key) ? integer(key, min, max) : fallback;
}

double JsonObject::number(std::string_view key, double min) const {
  const json& value = at(key);
  if (value.is_null()) missing(key);
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() < min)
    wrong(key, cat("a number of at least ", min));
  return value.get<double>();
}

double JsonObject::number_or(std::string_view key, double fallback, double min) const {
  return has(key) ? number(key, min) : fallback;
}

bool JsonObject::boolean_or(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!at(key).is_boolean()) wrong(key, "true or false");
  return at(key).get<bool>();
}

std::string JsonObject::text_or(std::string_view key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!at(key).is_string()) wrong(key, "a text");
  return at(key).get<std::string>();
}

JsonObject JsonObject::object(std::string_view key) const {
  if (!at(key).is_object()) wrong(key, "an object");
  return JsonObject(path_, at(key), cat(prefix_, key, "."));
}

void JsonObject::missing(std::string_view key) const {
  usage_error(cat(path_, ": ", prefix_, key, " is missing"));
}

void JsonObject::wrong(std::string_view key, const std::string& expected) const {
  usage_error(cat(path_, ": ", prefix_, key, ": expected ", expected, ", found ", shown(at(key))));
}

}  // namespace pipeinfer

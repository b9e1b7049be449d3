#include "pipeinfer/io/prompts.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/hash.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

/// Why a line is rejected, without its number.
struct Rejection {
  std::string why;
};

template <typename... Args>
[[noreturn]] void reject(const Args&... args) {
  throw Rejection{cat(args...)};
}

/// What was found, for a message. Nested values only by their type: printing them recurses as deep as they
/// nest.
std::string found(const json& value) {
  return value.is_primitive() && !value.is_string() ? value.dump() : value.type_name();
}

std::string text(const json& value, const std::string& field) {
  if (!value.is_string()) reject(field, " is ", found(value), ", expected a string");
  return value.get_ref<const std::string&>();
}

int32_t integer(const json& value, const std::string& field, int32_t least) {
  const bool fits = value.is_number_integer() &&
                    (value.is_number_unsigned() ? value.get<uint64_t>() <= std::numeric_limits<int32_t>::max()
                                                : value.get<int64_t>() >= least);
  if (!fits || value.get<int64_t>() < least)
    reject(field, " is ", found(value), ", expected an integer from ", least);
  return value.get<int32_t>();
}

/// A finite number that, rounded to float, is above `low` (or equals it, where `with_low`), and at most
/// `high`.
float number(const json& value, const std::string& field, float low, bool with_low, float high) {
  const float n = value.is_number() ? static_cast<float>(value.get<double>()) : NAN;
  if (std::isfinite(n) && (n > low || (with_low && n == low)) && n <= high) return n;
  const bool bounded = high < std::numeric_limits<float>::max();
  reject(field, " is ", found(value), ", expected a number ", with_low ? "of at least " : "above ", low,
         bounded ? cat(" and at most ", high) : "");
}

uint64_t seed(const json& value) {
  // Unsigned: nlohmann reads every integer from 0 as such, and larger ones as doubles.
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  reject("seed is ", found(value), ", expected an integer from 0 to ", std::numeric_limits<uint64_t>::max());
}

bool boolean(const json& value, const std::string& field) {
  if (!value.is_boolean()) reject(field, " is ", found(value), ", expected true or false");
  return value.get<bool>();
}

std::vector<int32_t> token_ids(const json& value, int64_t vocab_size) {
  if (!value.is_array()) reject("prompt_token_ids is ", found(value), ", expected a list of token ids");
  if (value.empty()) reject("prompt_token_ids is empty");
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const json& id : value) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size))
      reject("prompt_token_ids[", ids.size(), "] is ", found(id), ", expected a token id from 0 to ",
             vocab_size - 1);
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::vector<std::string> stop_strings(const json& value) {
  std::vector<std::string> stop;
  if (value.is_string()) {
    stop.push_back(value.get<std::string>());
  } else {
    if (!value.is_array()) reject("stop is ", found(value), ", expected a string or a list of strings");
    for (const json& one : value) stop.push_back(text(one, cat("stop[", stop.size(), "]")));
  }
  for (const std::string& one : stop)
    if (one.empty()) reject("stop holds an empty string");
  return stop;
}

/// Takes one field of a line over. False for an unknown one.
bool take_field(PromptRecord& record, const std::string& key, const json& value, int64_t vocab_size) {
  constexpr float kMax = std::numeric_limits<float>::max();
  if (key == "id")
    record.id = text(value, key);
  else if (key == "variant")
    record.variant = text(value, key);
  else if (key == "prompt")
    record.prompt = text(value, key);
  else if (key == "prompt_token_ids")
    record.prompt_token_ids = token_ids(value, vocab_size);
  else if (key == "token_budget")
    record.token_budget = integer(value, key, 1);
  else if (key == "max_new_tokens")
    record.max_new_tokens = integer(value, key, 1);
  else if (key == "temperature")
    record.temperature = number(value, key, 0, true, kMax);
  else if (key == "top_k")
    record.top_k = integer(value, key, 0);
  else if (key == "top_p")
    record.top_p = number(value, key, 0, false, 1);
  else if (key == "repetition_penalty")
    record.repetition_penalty = number(value, key, 0, false, kMax);
  else if (key == "seed")
    record.seed = seed(value);
  else if (key == "stop")
    record.stop = stop_strings(value);
  else if (key == "ignore_eos")
    record.ignore_eos = boolean(value, key);
  else
    return false;
  return true;
}

json parse_object(const std::string& line) {
  size_t bad = 0;
  if (!is_utf8(line, &bad)) reject("byte ", bad + 1, " is not valid UTF-8");
  try {
    json object = json::parse(line);
    if (!object.is_object()) reject("found ", found(object), ", expected a JSON object");
    return object;
  } catch (const json::parse_error& e) {
    reject("broken JSON at byte ", e.byte);
  } catch (const json::out_of_range&) {
    reject("a number is too large");
  }
}

}  // namespace

PromptReader::PromptReader(std::istream& in, int64_t vocab_size, std::function<void(const std::string&)> warn)
    : in_(in), vocab_size_(vocab_size), warn_(std::move(warn)) {}

std::optional<PromptRecord> PromptReader::next() {
  std::string line;
  while (std::getline(in_, line)) {
    if (++line_ == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);  // a byte order mark
    line.erase(line.find_last_not_of(" \t\r") + 1);
    if (!line.empty()) return parse(line);
  }
  return std::nullopt;
}

PromptRecord PromptReader::parse(const std::string& line) {
  PromptRecord record;
  record.prompt_index = index_++;
  record.line = line_;
  const auto reject_once = [&](const std::string& why) {
    if (record.error.empty()) record.error = cat("line ", line_, ": ", why);
  };
  try {
    const json object = parse_object(line);
    if (!object.contains("id")) record.id = cat("line-", line_);
    for (const auto& [key, value] : object.items()) {
      try {  // the other fields of a rejected line are still read: its record shows id and prompt
        if (!take_field(record, key, value, vocab_size_) && unknown_.insert(key).second)
          warn_(cat("line ", line_, ": unknown field \"", key, "\" is ignored"));
      } catch (const Rejection& rejection) {
        reject_once(rejection.why);
      }
    }
    const bool has_text = object.contains("prompt"), has_ids = object.contains("prompt_token_ids");
    if (has_text && has_ids) reject_once("both prompt and prompt_token_ids are given");
    if (!has_text && !has_ids) reject_once("there is no prompt and no prompt_token_ids");
  } catch (const Rejection& rejection) {
    reject_once(rejection.why);
  }
  if (record.id && !ids_.insert(*record.id).second)
    reject_once(cat("the id \"", *record.id, "\" is that of an earlier line"));
  record.hash = hash64(line, hash64(record.id.value_or("")));
  return record;
}

PromptFile read_prompts(const std::string& path, int64_t vocab_size, const PromptFilter& filter,
                        const std::function<void(const std::string&)>& warn) {
  std::ifstream in(path, std::ios::binary);
  if (!in) usage_error(cat("cannot read the prompts file ", path));
  PromptReader reader(in, vocab_size, [&](const std::string& what) { warn(cat(path, ", ", what)); });
  PromptFile file;
  while (auto record = reader.next()) {
    file.hashes.push_back(record->hash);
    const bool wanted = filter.variant.empty() || record->variant == filter.variant;
    const bool below_limit = filter.limit == 0 || static_cast<int64_t>(file.prompts.size()) < filter.limit;
    if (wanted && below_limit) file.prompts.push_back(std::move(*record));
  }
  if (in.bad()) usage_error(cat("cannot read the prompts file ", path));
  if (file.hashes.empty()) usage_error(cat("the prompts file ", path, " holds no prompt"));
  if (file.prompts.empty())
    usage_error(cat("the prompts file ", path, " holds no prompt of variant ", filter.variant));
  return file;
}

}  // namespace pipeinfer

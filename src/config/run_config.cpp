#include "pipeinfer/config/run_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <type_traits>

#include "json_file.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

template <typename... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};
template <typename... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;  // clang before 17 does not find it by itself

bool in_range(const Option& option, double value) {
  return std::isfinite(value) && (option.above_min ? value > option.min : value >= option.min) &&
         value <= option.max;
}

bool is_choice(const Option& option, const std::string& text) {
  return option.choices.empty() ||
         std::find(option.choices.begin(), option.choices.end(), text) != option.choices.end();
}

/// Whether `value` is an integer of the option; unsigned values above int64 don't wrap.
bool is_integer(const Option& option, const json& value) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return false;
  const int64_t number = value.get<int64_t>();
  return in_range(option, static_cast<double>(number)) && is_choice(option, std::to_string(number));
}

/// A number where all of `word` is one (an integer where it can be), else the text itself.
json number_or_text(const std::string& word) {
  const char *first = word.data(), *last = first + word.size();
  int64_t integer = 0;
  if (auto [end, error] = std::from_chars(first, last, integer); error == std::errc{} && end == last)
    return integer;
  double real = 0;
  if (auto [end, error] = std::from_chars(first, last, real);
      error == std::errc{} && end == last && std::isfinite(real))
    return real;
  return word;
}

/// "13,13" as a list.
json list_of(const std::string& text) {
  json list = json::array();
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    list.push_back(number_or_text(text.substr(begin, comma - begin)));
    begin = comma + 1;
  }
  return list;
}

/// The one place where a value enters a configuration; false where it is not what the option expects.
bool assign(RunConfig& config, const Option& option, const json& value) {
  const bool is_auto = option.or_auto && value == "auto";
  return std::visit(
      Overloaded{
          [&](bool RunConfig::*member) {
            if (!value.is_boolean()) return false;
            config.*member = value.get<bool>();
            return true;
          },
          [&](int64_t RunConfig::*member) {
            if (!is_auto && !is_integer(option, value)) return false;
            config.*member = is_auto ? 0 : value.get<int64_t>();
            return true;
          },
          [&](double RunConfig::*member) {
            if (!value.is_number() || !in_range(option, value.get<double>())) return false;
            config.*member = value.get<double>();
            return true;
          },
          [&](std::string RunConfig::*member) {
            if (!value.is_string() || !is_choice(option, value.get<std::string>())) return false;
            config.*member = value.get<std::string>();
            return true;
          },
          [&](std::vector<std::string> RunConfig::*member) {
            const json list = value.is_string() ? json::array({value}) : value;
            const auto good = [](const json& item) { return item.is_string() && item != ""; };
            if (!list.is_array() || !std::all_of(list.begin(), list.end(), good)) return false;
            config.*member = list.get<std::vector<std::string>>();
            return true;
          },
          [&](std::vector<int64_t> RunConfig::*member) {
            const json list = is_auto ? json::array() : value.is_string() ? list_of(value) : value;
            const auto good = [&](const json& item) { return is_integer(option, item); };
            if (!list.is_array() || (list.empty() && !is_auto) ||
                !std::all_of(list.begin(), list.end(), good))
              return false;
            config.*member = list.get<std::vector<int64_t>>();
            return true;
          },
      },
      option.member);
}

ordered_json value_of(const RunConfig& config, const Option& option) {
  return std::visit(
      [&](auto member) -> ordered_json {
        const auto& value = config.*member;
        using Value = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, int64_t>) {
          if (option.or_auto && value == 0) return "auto";
        } else if constexpr (std::is_same_v<Value, std::vector<int64_t>>) {
          if (option.or_auto && value.empty()) return "auto";
        }
        return value;
      },
      option.member);
}

std::string names(const std::vector<std::string>& list) {
  std::string text;
  for (const std::string& name : list) text += cat(text.empty() ? "" : ", ", name);
  return text;
}

std::vector<std::string> sections() {
  std::vector<std::string> found;
  for (const Option& option : options())
    if (found.empty() || found.back() != option.section) found.push_back(option.section);
  return found;
}

[[noreturn]] void unknown_key(const std::string& path, const std::string& section, const std::string& key) {
  if (const Option* elsewhere = find_option(key))
    usage_error(cat(path, ": ", section, ".", key, ": this key belongs to section ", elsewhere->section));
  std::vector<std::string> known;
  for (const Option& option : options())
    if (option.section == section) known.push_back(option.key);
  usage_error(cat(path, ": ", section, ".", key, ": unknown key, expected one of ", names(known)));
}

}  // namespace

std::optional<DType> RunConfig::dtype() const {
  for (const DType type : {DType::fp32, DType::fp16, DType::bf16})
    if (precision == dtype_name(type)) return type;
  return std::nullopt;
}

std::string RunConfig::name() const {
  if (!model_name.empty() || model_path.empty()) return model_name;
  const fs::path path = fs::absolute(model_path).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

std::string Option::flag() const {
  std::string name = "--" + key;
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

std::string Option::expected() const {
  if (!choices.empty()) return "one of " + names(choices);
  std::string range = cat(above_min ? " above " : std::isinf(max) ? " of at least " : " from ", min);
  if (!std::isinf(max)) range += cat(above_min ? " and at most " : " to ", static_cast<int64_t>(max));
  const std::string automatic = or_auto ? "auto or " : "";
  return std::visit(
      Overloaded{
          [](bool RunConfig::*) -> std::string { return "true or false"; },
          [&](int64_t RunConfig::*) { return automatic + "an integer" + range; },
          [&](double RunConfig::*) { return "a number" + range; },
          [&](std::string RunConfig::*) -> std::string { return is_path ? "a path" : "a text"; },
          [](std::vector<std::string> RunConfig::*) -> std::string { return "texts, none empty"; },
          [&](std::vector<int64_t> RunConfig::*) { return automatic + "integers such as 13,13"; },
      },
      member);
}

void set_option(RunConfig& config, const Option& option, const std::vector<std::string>& words) {
  json value;
  if (std::holds_alternative<std::vector<std::string> RunConfig::*>(option.member)) {
    value = words;
  } else if (words.size() != 1) {
    usage_error(cat(option.flag(), ": expected one value, found ", words.size()));
  } else if (std::holds_alternative<bool RunConfig::*>(option.member)) {
    value = words[0] == "true" ? json(true) : words[0] == "false" ? json(false) : json(words[0]);
  } else if (std::holds_alternative<int64_t RunConfig::*>(option.member) ||
             std::holds_alternative<double RunConfig::*>(option.member)) {
    value = number_or_text(words[0]);
  } else {
    value = words[0];
  }
  if (!assign(config, option, value))
    usage_error(cat(option.flag(), ": expected ", option.expected(), ", found ", names(words)));
}

std::string option_text(const RunConfig& config, const Option& option) {
  return value_of(config, option).dump();
}

void load_run_config(const std::string& path, RunConfig& config) {
  const JsonObject file = JsonObject::read(path);
  const fs::path folder = fs::path(path).parent_path();
  const std::vector<std::string> known = sections();
  const auto set = [&](const std::string& section, const std::string& key, const json& value) {
    const Option* option = find_option(key);
    if (!option || option->section != section) unknown_key(path, section, key);
    json given = value;
    if (option->is_path && value.is_string() && value != "")
      given = (folder / value.get<std::string>()).lexically_normal().string();
    if (!assign(config, *option, given))
      usage_error(
          cat(path, ": ", section, ".", key, ": expected ", option->expected(), ", found ", shown(value)));
  };
  std::optional<Error> first_error;
  const auto attempt = [&](const auto& step) {
    try {
      step();
    } catch (const Error& error) {
      if (!first_error) first_error = error;
    }
  };
  for (const auto& [section, keys] : file.value().items()) {
    attempt([&, &section = section, &keys = keys] {
      if (std::find(known.begin(), known.end(), section) == known.end())
        usage_error(cat(path, ": ", section, ": unknown section, expected one of ", names(known)));
      if (!keys.is_object()) file.wrong(section, "an object");
      for (const auto& [key, value] : keys.items())
        attempt([&, &key = key, &value = value] { set(section, key, value); });
    });
  }
  if (first_error) throw *first_error;
}

std::string run_config_json(const RunConfig& config) {
  ordered_json all;
  for (const Option& option : options()) all[option.section][option.key] = value_of(config, option);
  return all.dump();
}

void check_run_config(const RunConfig& config) {
  if (config.quantization != "none")
    usage_error(cat("quantization ", config.quantization, " is not implemented yet: only none is"));
  if (config.tensor_parallel_size > 1)
    usage_error(
        cat("tensor_parallel_size ", config.tensor_parallel_size, " is not implemented yet: only 1 is"));
  if (config.data_parallel_size > 1)
    usage_error(cat("data_parallel_size ", config.data_parallel_size, " is not implemented yet: only 1 is"));
  if (const int64_t stages = config.pipeline_parallel_size;
      stages > 0 && !config.partition.empty() && stages != static_cast<int64_t>(config.partition.size()))
    usage_error(
        cat("partition names ", config.partition.size(), " stages, but pipeline_parallel_size is ", stages));
  if (config.resume && config.overwrite) usage_error("resume and overwrite contradict each other");
  if (config.device == "cpu" && config.transport == "nccl")
    usage_error("transport nccl needs GPUs, but device is cpu");
}

std::vector<std::pair<std::string, std::string>> result_options(const RunConfig& config) {
  std::vector<std::pair<std::string, std::string>> list;
  for (const Option& option : options())
    if (option.changes_result) list.emplace_back(option.key, option_text(config, option));
  return list;
}

}  // namespace pipeinfer

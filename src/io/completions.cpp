#include "pipeinfer/io/completions.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "pipeinfer/base/text.h"
#include "run_files.h"

namespace pipeinfer {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

/// Seconds to the microsecond: more digits say nothing.
double rounded(double value) { return std::round(value * 1e6) / 1e6; }

template <typename T>
ordered_json or_null(bool there, const T& value) {
  return there ? ordered_json(value) : ordered_json(nullptr);
}

FinishReason parse_finish_reason(const std::string& name) {
  for (const FinishReason reason :
       {FinishReason::eos, FinishReason::length, FinishReason::stop, FinishReason::error})
    if (name == finish_reason_name(reason)) return reason;
  throw std::invalid_argument(cat("finish_reason is \"", name, "\""));
}

}  // namespace

std::string to_json_line(const CompletionRecord& record) {
  const ordered_json object = {
      {"id", or_null(record.id.has_value(), record.id.value_or(""))},
      {"prompt_index", record.prompt_index},
      {"variant", record.variant},
      {"prompt", record.prompt},
      {"completion", record.completion},
      {"prompt_tokens", record.prompt_tokens},
      {"tokens_generated", record.tokens_generated},
      {"token_ids", record.token_ids},
      {"finish_reason", finish_reason_name(record.finish_reason)},
      {"error", or_null(!record.error.empty(), record.error)},
      {"ttft_s", rounded(record.ttft_s)},
      {"latency_s", rounded(record.latency_s)},
      {"throughput_tok_s", rounded(record.throughput_tok_s)},
  };
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

CompletionRecord completion_from_json(std::string_view line) {
  try {
    const json object = json::parse(line);
    CompletionRecord record;
    if (const json& id = object.at("id"); !id.is_null()) record.id = id.get<std::string>();
    object.at("prompt_index").get_to(record.prompt_index);
    object.at("variant").get_to(record.variant);
    object.at("prompt").get_to(record.prompt);
    object.at("completion").get_to(record.completion);
    object.at("prompt_tokens").get_to(record.prompt_tokens);
    object.at("tokens_generated").get_to(record.tokens_generated);
    object.at("token_ids").get_to(record.token_ids);
    record.finish_reason = parse_finish_reason(object.at("finish_reason").get<std::string>());
    if (const json& error = object.at("error"); !error.is_null()) record.error = error.get<std::string>();
    object.at("ttft_s").get_to(record.ttft_s);
    object.at("latency_s").get_to(record.latency_s);
    object.at("throughput_tok_s").get_to(record.throughput_tok_s);
    return record;
  } catch (const json::exception& e) {
    throw std::invalid_argument(json_reason(e));
  }
}

}  // namespace pipeinfer

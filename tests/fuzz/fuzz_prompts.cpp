// The prompts reader on any bytes: every non-blank line becomes a record, rejected ones say why; and what a
// record holds can be written as a completion and read back.
#include <cstdint>
#include <cstdlib>
#include <sstream>

#include "pipeinfer/io/completions.h"
#include "pipeinfer/io/prompts.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pipeinfer;
  constexpr int64_t kVocab = 32000;
  std::istringstream in(std::string(reinterpret_cast<const char*>(data), size));
  PromptReader reader(in, kVocab, [](const std::string&) {});
  int64_t index = 0, line = 0;
  while (const auto prompt = reader.next()) {
    require(prompt->prompt_index == index++);
    require(prompt->line > line);
    line = prompt->line;
    if (prompt->rejected()) {
      require(prompt->error.starts_with("line " + std::to_string(line) + ": "));
    } else {
      require(prompt->id.has_value() && is_utf8(prompt->prompt));
      require(!prompt->prompt_token_ids || !prompt->prompt_token_ids->empty());
      for (const int32_t token : prompt->prompt_token_ids.value_or(std::vector<int32_t>()))
        require(token >= 0 && token < kVocab);
      require(prompt->top_p.value_or(1) > 0 && prompt->top_p.value_or(1) <= 1);
      require(prompt->temperature.value_or(0) >= 0 && prompt->repetition_penalty.value_or(1) > 0);
    }
    if (index > 1) continue;  // once an input: it writes all of its bytes

    CompletionRecord record;
    record.id = prompt->id;
    record.prompt = prompt->prompt;
    record.completion.assign(reinterpret_cast<const char*>(data), size);  // any bytes
    record.error = prompt->error;
    record.finish_reason = prompt->rejected() ? FinishReason::error : FinishReason::length;
    const std::string text = to_json_line(record);
    require(text.find('\n') == std::string::npos);
    const CompletionRecord back = completion_from_json(text);
    require(back.id == record.id && back.prompt == record.prompt && is_utf8(back.completion));
  }
  return 0;
}

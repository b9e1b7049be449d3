#include "pipeinfer/app/completion_sink.h"

#include <algorithm>

#include "pipeinfer/base/clock.h"

namespace pipeinfer {

CompletionSink::CompletionSink(const Tokenizer* tokenizer, std::vector<int32_t> eos_ids,
                               std::function<void(const CompletionRecord&, const Sequence&)> write,
                               std::function<void(const std::string&)> show)
    : tokenizer_(tokenizer), eos_ids_(std::move(eos_ids)), write_(std::move(write)), show_(std::move(show)) {}

CompletionSink::Open& CompletionSink::open(const Sequence& sequence) {
  const Request& request = sequence.request;
  const auto found = open_.find(request.prompt_index);
  if (found != open_.end()) return found->second;
  Open open{CompletionStream(tokenizer_, request.prompt_tokens, request.stop), ""};
  return open_.emplace(request.prompt_index, std::move(open)).first->second;
}

void CompletionSink::append(Open& open, const std::string& text) {
  open.text += text;
  if (show_ && !text.empty()) show_(text);
}

bool CompletionSink::on_token(const Sequence& sequence) {
  const int32_t token = sequence.tokens.back();
  ++tokens_;
  counts_.last_token_s = now_s();
  if (counts_.first_token_s == 0) counts_.first_token_s = counts_.last_token_s;
  Open& open = this->open(sequence);
  if (std::find(eos_ids_.begin(), eos_ids_.end(), token) != eos_ids_.end()) return false;  // EOS is no text
  append(open, open.stream.push(token));
  return open.stream.stopped();
}

void CompletionSink::on_finish(const Sequence& sequence) {
  const Request& request = sequence.request;
  Open& open = this->open(sequence);
  append(open, open.stream.finish());
  CompletionRecord record;
  record.id = request.id;
  record.prompt_index = request.prompt_index;
  record.variant = request.variant;
  record.prompt = request.prompt;
  record.completion = std::move(open.text);
  record.prompt_tokens = static_cast<int32_t>(request.prompt_tokens.size());
  record.tokens_generated = sequence.new_tokens();
  record.token_ids.assign(sequence.tokens.begin() + record.prompt_tokens, sequence.tokens.end());
  record.finish_reason = sequence.finish;
  record.ttft_s = sequence.first_token_s - sequence.submitted_s;
  record.latency_s = sequence.finished_s - sequence.submitted_s;
  if (record.latency_s > 0) record.throughput_tok_s = record.tokens_generated / record.latency_s;
  open_.erase(request.prompt_index);
  ++counts_.done;
  counts_.prompt_tokens += record.prompt_tokens;
  counts_.tokens_generated += record.tokens_generated;
  counts_.ttft_s.push_back(record.ttft_s);
  if (record.tokens_generated > 1)
    counts_.token_latency_s.push_back((sequence.finished_s - sequence.first_token_s) /
                                      (record.tokens_generated - 1));
  write_(record, sequence);
}

}  // namespace pipeinfer

#include "pipeinfer/batch/step_plan.h"

#include <algorithm>

#include "pipeinfer/base/bytes.h"
#include "pipeinfer/batch/sequence.h"

namespace pipeinfer {

namespace {

constexpr uint32_t kPlanVersion = 0x50490001;    // "PI", version 1
constexpr uint32_t kResultVersion = 0x52490001;  // "RI", version 1

[[noreturn]] void refuse(const StepPlan& plan, const std::string& why) {
  runtime_failure(cat("the plan of step ", plan.step, " is refused: ", why));
}

void check_range(const StepPlan& plan, const char* what, int64_t value, int64_t end) {
  if (value < 0 || value >= end) refuse(plan, cat(what, " ", value, " is outside [0, ", end, ")"));
}

void check_row(const StepPlan& plan, const StepRow& row, const PlanLimits& limits) {
  check_range(plan, "slot", row.slot, limits.slots);
  check_range(plan, "position", row.position, limits.context);
  if (row.n_tokens < 1 || row.n_tokens > limits.context - row.position)
    refuse(plan, cat("slot ", row.slot, " has ", row.n_tokens, " tokens at position ", row.position,
                     ", the context is ", limits.context));
  if (row.n_samples < 0 || row.n_samples > row.n_tokens)
    refuse(plan, cat("slot ", row.slot, " samples ", row.n_samples, " of ", row.n_tokens, " tokens"));
  const auto n_host = static_cast<int64_t>(plan.tokens.size());
  if (row.first_token == kFromSlot ? row.n_tokens != 1
                                   : row.first_token < 0 || row.first_token > n_host - row.n_tokens)
    refuse(plan,
           cat("slot ", row.slot, " takes ", row.n_tokens, " tokens from ", row.first_token, " of ", n_host));
}

}  // namespace

int32_t StepPlan::n_tokens() const {
  int32_t n = 0;
  for (const StepRow& row : rows) n += row.n_tokens;
  return n;
}

int32_t StepPlan::n_decode() const {
  int32_t n = 0;
  for (const StepRow& row : rows) {
    if (row.first_token != kFromSlot || row.n_samples != 1) break;
    ++n;
  }
  return n;
}

int32_t StepPlan::n_samples() const {
  int32_t n = 0;
  for (const StepRow& row : rows) n += row.n_samples;
  return n;
}

void StepPlan::check(const PlanLimits& limits) const {
  check_range(*this, "lane", lane, limits.lanes);
  for (int32_t slot : closed) check_range(*this, "slot", slot, limits.slots);
  for (const SlotOpen& open : opened) {
    check_range(*this, "slot", open.slot, limits.slots);
    if (open.prompt_tokens < 1 || open.prompt_tokens > limits.context)
      refuse(*this, cat("slot ", open.slot, " has a prompt of ", open.prompt_tokens,
                        " tokens, the context is ", limits.context));
  }
  const int64_t most_blocks = (limits.context + limits.block_size - 1) / limits.block_size;
  for (const BlockGrant& grant : granted) {
    check_range(*this, "slot", grant.slot, limits.slots);
    if (static_cast<int64_t>(grant.blocks.size()) > most_blocks)
      refuse(*this,
             cat("slot ", grant.slot, " gets ", grant.blocks.size(), " blocks, a context has ", most_blocks));
    for (int32_t block : grant.blocks) check_range(*this, "block", block, limits.blocks);
  }
  if (rows.size() > static_cast<size_t>(limits.slots)) refuse(*this, "there are more rows than slots");
  int64_t n_rows_tokens = 0;
  std::vector<bool> used(limits.slots, false);
  for (const StepRow& row : rows) {
    check_row(*this, row, limits);
    if (used[row.slot]) refuse(*this, cat("slot ", row.slot, " has two rows"));
    used[row.slot] = true;
    n_rows_tokens += row.n_tokens;
  }
  if (n_rows_tokens > limits.max_tokens)
    refuse(*this, cat("it has ", n_rows_tokens, " tokens, a step has at most ", limits.max_tokens));
  for (int32_t token : tokens) check_range(*this, "token", token, limits.vocab_size);
}

std::vector<std::byte> StepPlan::serialize() const {
  ByteWriter out;
  out.put(kPlanVersion);
  out.put(step);
  out.put(lane);
  out.put(static_cast<uint8_t>(want_top));
  out.put_all(closed);
  out.put_all(opened);
  out.put(static_cast<uint32_t>(granted.size()));
  for (const BlockGrant& grant : granted) {
    out.put(grant.slot);
    out.put_all(grant.blocks);
  }
  out.put_all(rows);
  out.put_all(tokens);
  return out.take();
}

StepPlan StepPlan::parse(std::span<const std::byte> bytes) {
  ByteReader in(bytes, "step plan");
  if (const auto version = in.get<uint32_t>(); version != kPlanVersion)
    runtime_failure(cat("broken step plan: version ", version, ", expected ", kPlanVersion,
                        " (do all ranks run the same pipeinfer?)"));
  StepPlan plan;
  plan.step = in.get<uint64_t>();
  plan.lane = in.get<int32_t>();
  plan.want_top = in.get<uint8_t>() != 0;
  plan.closed = in.get_all<int32_t>();
  plan.opened = in.get_all<SlotOpen>();
  const auto n_granted = in.get<uint32_t>();
  for (uint32_t i = 0; i < n_granted; ++i) {  // bounded: a grant that is not there ends the loop by an Error
    const auto slot = in.get<int32_t>();
    plan.granted.push_back({slot, in.get_all<int32_t>()});
  }
  plan.rows = in.get_all<StepRow>();
  plan.tokens = in.get_all<int32_t>();
  in.end();
  return plan;
}

std::vector<std::byte> StepResult::serialize() const {
  ByteWriter out;
  out.put(kResultVersion);
  out.put(step);
  out.put(lane);
  out.put_all(tokens);
  out.put_all(top);
  return out.take();
}

StepResult StepResult::parse(std::span<const std::byte> bytes) {
  ByteReader in(bytes, "step result");
  if (const auto version = in.get<uint32_t>(); version != kResultVersion)
    runtime_failure(cat("broken step result: version ", version, ", expected ", kResultVersion));
  StepResult result;
  result.step = in.get<uint64_t>();
  result.lane = in.get<int32_t>();
  result.tokens = in.get_all<int32_t>();
  result.top = in.get_all<TopLogit>();
  in.end();
  return result;
}

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "";
    case FinishReason::eos:
      return "eos";
    case FinishReason::length:
      return "length";
    case FinishReason::stop:
      return "stop";
    case FinishReason::error:
      return "error";
  }
  return "";
}

}  // namespace pipeinfer

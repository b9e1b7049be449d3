#include "served.h"

#include <algorithm>

#include "pipeinfer/base/check.h"

namespace pipeinfer {

int32_t Served::row_limit() const {
  const Request& request = sequence.request;
  return static_cast<int32_t>(request.prompt_tokens.size()) + std::max(request.max_new_tokens, 1) - 1;
}

int32_t Served::tokens_at_admission() const {
  return std::min(static_cast<int32_t>(sequence.tokens.size()) + 1, row_limit());
}

void Served::reset() {
  slot = -1;
  opened = false;
  blocks.clear();
  granted = 0;
  planned = 0;
  prefill_end = static_cast<int32_t>(sequence.tokens.size());
  score_begin = sequence.request.score_from + scored;
  state = State::active;
}

StepRow Served::add_row(StepPlan& plan, int32_t budget) {
  const Request& request = sequence.request;
  if (!opened) {
    opened = true;
    plan.opened.push_back({slot, static_cast<int32_t>(request.prompt_tokens.size()), request.sampling});
  }
  if (granted < blocks.size()) {
    plan.granted.push_back({slot, {blocks.begin() + static_cast<std::ptrdiff_t>(granted), blocks.end()}});
    granted = blocks.size();
  }

  StepRow row{slot, planned, 1, kFromSlot, 1};
  if (prefilling()) {
    int32_t end = std::min(planned + budget, prefill_end);
    // A row scores all of its positions or none.
    if (score_only() && planned < score_begin) end = std::min(end, score_begin);
    row.n_tokens = end - planned;
    row.first_token = static_cast<int32_t>(plan.tokens.size());
    if (score_only()) {
      row.n_samples = planned >= score_begin ? row.n_tokens : 0;
    } else {
      row.n_samples = end == prefill_end ? 1 : 0;
    }
    plan.tokens.insert(plan.tokens.end(), sequence.tokens.begin() + planned, sequence.tokens.begin() + end);
  }
  planned += row.n_tokens;
  ++in_flight;
  plan.rows.push_back(row);
  return row;
}

bool Served::take_samples(std::span<const int32_t> tokens, std::span<const TopLogit> top) {
  sequence.top.insert(sequence.top.end(), top.begin(), top.end());
  if (score_only()) {
    const Request& request = sequence.request;
    scored += static_cast<int32_t>(tokens.size());
    const auto prompt = static_cast<int32_t>(request.prompt_tokens.size());
    if (request.score_from + scored == prompt) sequence.finish = FinishReason::length;
    return false;
  }
  PI_CHECK(tokens.size() == 1, "a row samples ", tokens.size(), " tokens");
  sequence.tokens.push_back(tokens[0]);
  return true;
}

}  // namespace pipeinfer

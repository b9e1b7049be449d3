// Slots and sampling. The definition of a draw is in sampling_math.h; here candidates are sorted.
#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "../ops.h"
#include "../sampling_math.h"

namespace pipeinfer::kernels::cpu {
namespace {

const uint32_t* seen_of(const SlotTable& slots, int slot) {
  return slots.seen ? slots.seen + int64_t{slot} * slots.seen_words : nullptr;
}

void mark(const SlotTable& slots, int slot, int token) {
  if (slots.seen) slots.seen[int64_t{slot} * slots.seen_words + token / 32] |= 1u << token % 32;
}

/// `candidates` in descending order; the greatest logit is finite.
int draw(const std::vector<uint64_t>& candidates, const SamplingParams& params, int position) {
  const float max = candidate_logit(candidates.front());
  const size_t k = params.top_k > 0 ? std::min<size_t>(params.top_k, candidates.size()) : candidates.size();
  std::vector<uint64_t> cumulated(k);
  uint64_t total = 0;
  for (size_t i = 0; i < k; ++i) cumulated[i] = total += weight(candidate_logit(candidates[i]), max);
  if (params.top_p < 1)
    total = *std::lower_bound(cumulated.begin(), cumulated.end(), share(params.top_p, total));
  const uint64_t target =
      scale_draw(draw64(params.seed, params.id_hash, static_cast<uint32_t>(position)), total);
  const auto found = std::upper_bound(cumulated.begin(), cumulated.end(), target);
  return candidate_id(candidates[found - cumulated.begin()]);
}

int sample_row(const float* logits, int vocab, const uint32_t* seen, const SamplingParams& params,
               int position) {
  std::vector<uint64_t> candidates(vocab);
  for (int i = 0; i < vocab; ++i)
    candidates[i] = candidate(chosen_by(logits[i], seen && seen[i / 32] >> i % 32 & 1, params), i);
  const uint64_t best = *std::max_element(candidates.begin(), candidates.end());
  if (params.temperature <= 0 || candidate_logit(best) == -INFINITY) return candidate_id(best);
  std::sort(candidates.begin(), candidates.end(), std::greater<>());
  return draw(candidates, params, position);
}

}  // namespace

void set_blocks(int32_t* block_table, const BlockEntry* entries, int n, int max_blocks, Stream&) {
  for (int i = 0; i < n; ++i)
    block_table[int64_t{entries[i].slot} * max_blocks + entries[i].index] = entries[i].block;
}

void open_slots(const SlotTable& slots, const SlotEntry* entries, int n, Stream&) {
  for (int i = 0; i < n; ++i) {
    const SlotEntry& entry = entries[i];
    if (slots.sampling) slots.sampling[entry.slot] = entry.sampling;
    if (slots.prompt_tokens) slots.prompt_tokens[entry.slot] = entry.prompt_tokens;
    if (slots.seen) std::fill_n(slots.seen + int64_t{entry.slot} * slots.seen_words, slots.seen_words, 0u);
  }
}

void mark_seen(const SlotTable& slots, const int32_t* slot, const int32_t* token, int n, Stream&) {
  for (int i = 0; i < n; ++i) {
    if (token[i] >= 0) mark(slots, slot[i], token[i]);
  }
}

void set_last_token(const SlotTable& slots, const int32_t* slot, const int32_t* sampled, int n, Stream&) {
  for (int i = 0; i < n; ++i) slots.last_token[slot[i]] = sampled[i];
}

void sample(int32_t* out, const float* logits, const int32_t* slot, const int32_t* position,
            const SlotTable& slots, int n, int vocab, Stream&) {
  for (int i = 0; i < n; ++i) {
    out[i] = sample_row(logits + int64_t{i} * vocab, vocab, seen_of(slots, slot[i]), slots.sampling[slot[i]],
                        position[i] + 1);
  }
  for (int i = 0; i < n; ++i) mark(slots, slot[i], out[i]);
}

void top_logits(TopLogit* out, const float* logits, int n, int vocab, Stream&) {
  for (int row = 0; row < n; ++row, logits += vocab, out += kTopLogits) {
    uint64_t last = std::numeric_limits<uint64_t>::max();
    for (int k = 0; k < kTopLogits; ++k) {
      uint64_t best = 0;
      for (int i = 0; i < vocab; ++i) {
        const uint64_t next = candidate(logits[i], i);
        if (next < last) best = std::max(best, next);
      }
      out[k] = k < vocab ? TopLogit{candidate_id(best), candidate_logit(best)} : TopLogit{-1, -INFINITY};
      last = best;
    }
  }
}

}  // namespace pipeinfer::kernels::cpu

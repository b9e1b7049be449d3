// The host-side description of a step. Rank 0 makes it, every stage obeys it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pipeinfer/base/sampling.h"

namespace pipeinfer {

/// A slot that starts to be used. Its blocks start empty; its seen tokens start empty and are fed by the rows.
struct SlotOpen {
  int32_t slot;
  int32_t prompt_tokens;  ///< for dynamic NTK: recomputed new tokens do not count (DESIGN: "Dynamic NTK")
  SamplingParams sampling;
};

/// Blocks appended to a slot's block table.
struct BlockGrant {
  int32_t slot;
  std::vector<int32_t> blocks;
};

/// Consecutive tokens of one sequence in a step.
struct StepRow {
  int32_t slot;
  int32_t position;  ///< of the first token, from 0
  int32_t n_tokens;  ///< >= 1
  /// Index into StepPlan::tokens, or kFromSlot: the token the slot sampled last (n_tokens is 1).
  int32_t first_token;
  /// How many of the last positions get logits and a token: 0, 1, or all (teacher forcing).
  int32_t n_samples;
};
inline constexpr int32_t kFromSlot = -1;

/// Limits that a reader checks a plan against; what does not fit them is an Error, never an access out of range.
struct PlanLimits {
  int32_t slots = 0;       ///< slot in [0, slots)
  int32_t blocks = 0;      ///< block id in [0, blocks)
  int32_t block_size = 0;  ///< tokens a block
  int32_t context = 0;     ///< position + n_tokens <= context
  int32_t vocab_size = 0;  ///< token in [0, vocab_size)
  int32_t lanes = 0;       ///< lane in [0, lanes)
  int32_t max_tokens = 0;  ///< most tokens of a step
};

struct StepPlan {
  uint64_t step = 0;  ///< numbered over the whole job, from 0
  int32_t lane = 0;
  bool want_top = false;  ///< also return each sample's kTopLogits largest raw logits (before any penalty)
  std::vector<int32_t> closed;      ///< slots no longer used; applied first
  std::vector<SlotOpen> opened;     ///< applied second
  std::vector<BlockGrant> granted;  ///< applied third, before the rows run
  std::vector<StepRow> rows;    ///< decode rows (kFromSlot) first, then prefill chunks; a slot at most once
  std::vector<int32_t> tokens;  ///< the host tokens that rows point into

  int32_t n_tokens() const;   ///< tokens of all rows
  int32_t n_decode() const;   ///< leading rows with one token and one sample taken from the slot
  int32_t n_samples() const;  ///< tokens sampled, in row order

  /// Throws Error(failed) that says what is out of bounds.
  void check(const PlanLimits& limits) const;

  /// Versioned little-endian bytes; `parse` also bounds every count by the bytes that are there.
  std::vector<std::byte> serialize() const;
  static StepPlan parse(std::span<const std::byte> bytes);
};

/// What the last stage reports of a step, late and without blocking anybody.
struct StepResult {
  uint64_t step = 0;
  int32_t lane = 0;
  std::vector<int32_t> tokens;  ///< [plan.n_samples()]
  std::vector<TopLogit> top;    ///< [plan.n_samples() * kTopLogits] where the plan wanted them, else empty

  std::vector<std::byte> serialize() const;
  static StepResult parse(std::span<const std::byte> bytes);
};

}  // namespace pipeinfer

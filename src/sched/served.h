// A sequence as the scheduler sees it: how far it is planned, and what it holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pipeinfer/batch/sequence.h"
#include "pipeinfer/batch/step_plan.h"

namespace pipeinfer {

struct Served {
  enum class State {
    active,  ///< waiting, or has rows in plans
    evicted,  ///< a victim of preemption: in no further plan, back to waiting once its steps in flight are known
    ended,  ///< finished or cancelled: in no further plan, what its steps in flight still bring is dropped
  };

  Sequence sequence;
  uint64_t age = 0;            ///< order of submission: the smaller, the older
  bool admitted_once = false;  ///< it waits because it was preempted
  State state = State::active;

  // From admission to release.
  int32_t slot = -1;
  bool opened = false;          ///< its SlotOpen is in a plan
  std::vector<int32_t> blocks;  ///< its block table
  size_t granted = 0;           ///< blocks that plans have told the stages
  int32_t planned = 0;          ///< positions [0, planned) have rows in plans
  int32_t prefill_end = 0;      ///< tokens known at admission: rows below it bring their tokens from the host
  int32_t score_begin = 0;      ///< score_only: the first position still to be scored at admission
  int32_t scored = 0;           ///< score_only: positions scored so far (it outlives a preemption)
  int in_flight = 0;            ///< steps planned and not committed that name it

  bool leaving() const { return state != State::active; }
  bool score_only() const { return sequence.request.max_new_tokens == 0; }
  bool prefilling() const { return planned < prefill_end; }

  /// Positions that get rows at most: the last new token is never fed back.
  int32_t row_limit() const;

  /// Tokens that must have blocks for it to be admitted: all that are known, and one more where it goes on.
  int32_t tokens_at_admission() const;

  bool wants_decode() const { return !leaving() && !prefilling() && planned < row_limit(); }
  bool wants_prefill() const { return !leaving() && prefilling(); }

  /// Forgets what it held, to be admitted (again).
  void reset();

  /// Appends its next row to the plan: one token from its slot, or at most `budget` tokens of its prefill,
  /// with what the stages must know before. Returns the row.
  StepRow add_row(StepPlan& plan, int32_t budget);

  /// Samples of its oldest row in flight: [n] and, where wanted, [n, kTopLogits]. Returns whether a new token
  /// was appended. For score_only nothing is; it has finished (length) when all its positions are scored.
  bool take_samples(std::span<const int32_t> tokens, std::span<const TopLogit> top);
};

}  // namespace pipeinfer

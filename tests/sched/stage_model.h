// What the stages do with plans, modelled on the host: slots, block tables and KV entries. It refuses what a
// real stage could not survive, and its tokens are a hash of the KV entries it really reads: a block reused
// wrongly changes them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "pipeinfer/base/check.h"
#include "pipeinfer/batch/sequence.h"
#include "pipeinfer/batch/step_plan.h"
#include "pipeinfer/sched/scheduler.h"

namespace pipeinfer::testing {

inline constexpr int kVocabulary = 97;

/// Continues a hash of the tokens of a sequence.
inline uint64_t hash_token(uint64_t hash, int32_t token) {
  hash = (hash ^ static_cast<uint64_t>(token + 1)) * 0x9e3779b97f4a7c15ull;
  return hash ^ (hash >> 29);
}

/// The candidates after tokens of this hash; the first is the one sampled.
inline TopLogit candidate(uint64_t hash, int rank) {
  return {static_cast<int32_t>((hash + static_cast<uint64_t>(rank)) % kVocabulary),
          static_cast<float>(-rank)};
}

class StageModel {
 public:
  explicit StageModel(const SchedulerConfig& config)
      : config_(config),
        limits_{config.batch_size,
                config.blocks,
                config.block_size,
                config.context,
                kVocabulary,
                config.lanes,
                config.batch_size + config.prefill_chunk},
        slots_(static_cast<size_t>(config.batch_size)),
        owner_(static_cast<size_t>(config.blocks), kNobody),
        pins_(static_cast<size_t>(config.blocks)),
        entries_(static_cast<size_t>(config.blocks * config.block_size)) {}

  /// Runs the plan at once (stages run steps in order); the result is for the test to deliver late.
  StepResult run(const StepPlan& plan) {
    plan.check(limits_);
    PI_CHECK(plan.step == next_step_, "step ", plan.step, " comes instead of ", next_step_);
    ++next_step_;
    change_slots(plan);
    StepResult result{plan.step, plan.lane, {}, {}};
    int32_t prompt_tokens = 0;
    int32_t decodes = 0;
    for (const StepRow& row : plan.rows) {
      Slot& slot = open_slot(row.slot);
      if (slot.lane < 0) slot.lane = plan.lane;
      PI_CHECK(slot.lane == plan.lane, "slot ", row.slot, " of lane ", slot.lane, " has a row in lane ",
               plan.lane);
      if (row.first_token == kFromSlot) {
        ++decodes;
      } else {
        prompt_tokens += row.n_tokens;
      }
      run_row(plan, row, slot, result);
      pin(plan.step, row.slot, slot);
    }
    PI_CHECK(plan.n_decode() == decodes, "a decode row stands behind a prefill chunk");
    PI_CHECK(prompt_tokens <= config_.prefill_chunk, prompt_tokens, " prompt tokens in a step");
    PI_CHECK(decodes <= (config_.batch_size + config_.lanes - 1) / config_.lanes, "lane ", plan.lane, " has ",
             decodes, " decode rows");
    return result;
  }

  /// The step's result has reached the scheduler: what it names may be used anew.
  void completed(uint64_t step) {
    for (int32_t block : pinned_.at(step)) --pins_[static_cast<size_t>(block)];
    for (int32_t slot : queued_.at(step)) --slots_[static_cast<size_t>(slot)].queued;
    pinned_.erase(step);
    queued_.erase(step);
  }

 private:
  static constexpr int64_t kNobody = -1;

  struct Slot {
    bool open = false;
    int64_t generation = kNobody;  // of its last opening
    int lane = -1;
    int queued = 0;  // steps not completed that name it
    int32_t length = 0;
    int32_t last_token = -1;
    std::vector<int32_t> table;
  };
  struct Entry {
    int32_t token = -1;
    int32_t position = -1;
    int64_t generation = kNobody;
  };

  Slot& open_slot(int32_t index) {
    Slot& slot = slots_.at(static_cast<size_t>(index));
    PI_CHECK(slot.open, "slot ", index, " is not open");
    return slot;
  }

  void change_slots(const StepPlan& plan) {
    for (int32_t index : plan.closed) {
      Slot& slot = open_slot(index);
      PI_CHECK(slot.queued == 0, "slot ", index, " is closed while ", slot.queued, " queued steps name it");
      for (int32_t block : slot.table) owner_[static_cast<size_t>(block)] = kNobody;
      slot.open = false;
    }
    for (const SlotOpen& open : plan.opened) {
      Slot& slot = slots_.at(static_cast<size_t>(open.slot));
      PI_CHECK(!slot.open && slot.queued == 0, "slot ", open.slot, " is opened while it is in use");
      slot = Slot{};
      slot.open = true;
      slot.generation = ++generations_;
    }
    for (const BlockGrant& grant : plan.granted) {
      Slot& slot = open_slot(grant.slot);
      for (int32_t block : grant.blocks) {
        int64_t& owner = owner_.at(static_cast<size_t>(block));
        PI_CHECK(owner == kNobody, "block ", block, " is granted to slot ", grant.slot,
                 ", another slot owns it");
        PI_CHECK(pins_[static_cast<size_t>(block)] == 0, "block ", block,
                 " is granted while a queued step names it");
        owner = slot.generation;
        slot.table.push_back(block);
      }
    }
  }

  Entry& entry(const Slot& slot, int32_t position) {
    const auto index = static_cast<size_t>(position / config_.block_size);
    PI_CHECK(index < slot.table.size(), "position ", position, " has no block");
    return entries_[static_cast<size_t>(slot.table[index] * config_.block_size +
                                        position % config_.block_size)];
  }

  void run_row(const StepPlan& plan, const StepRow& row, Slot& slot, StepResult& result) {
    PI_CHECK(row.position == slot.length, "slot ", row.slot, " goes on at ", row.position, ", it has ",
             slot.length);
    slot.length += row.n_tokens;
    for (int32_t i = 0; i < row.n_tokens; ++i) {
      const int32_t token = row.first_token == kFromSlot
                                ? slot.last_token
                                : plan.tokens[static_cast<size_t>(row.first_token + i)];
      PI_CHECK(token >= 0, "slot ", row.slot, " has sampled no token yet");
      entry(slot, row.position + i) = {token, row.position + i, slot.generation};
    }
    for (int32_t end = slot.length - row.n_samples + 1; end <= slot.length; ++end) {
      uint64_t hash = 0;
      for (int32_t position = 0; position < end; ++position) {
        const Entry& read = entry(slot, position);
        PI_CHECK(read.position == position && read.generation == slot.generation, "slot ", row.slot,
                 " reads another's entry at position ", position);
        hash = hash_token(hash, read.token);
      }
      slot.last_token = candidate(hash, 0).token;
      result.tokens.push_back(slot.last_token);
      for (int rank = 0; plan.want_top && rank < kTopLogits; ++rank)
        result.top.push_back(candidate(hash, rank));
    }
  }

  void pin(uint64_t step, int32_t index, Slot& slot) {
    ++slot.queued;
    queued_[step].push_back(index);
    for (int32_t block : slot.table) {
      ++pins_[static_cast<size_t>(block)];
      pinned_[step].push_back(block);
    }
  }

  SchedulerConfig config_;
  PlanLimits limits_;
  std::vector<Slot> slots_;
  std::vector<int64_t> owner_;  // [blocks] generation of the slot that owns it
  std::vector<int> pins_;       // [blocks] queued rows that name it
  std::vector<Entry> entries_;  // [blocks, block_size]
  std::map<uint64_t, std::vector<int32_t>> pinned_, queued_;
  uint64_t next_step_ = 0;
  int64_t generations_ = 0;
};

}  // namespace pipeinfer::testing

// A stage without a model: its "KV cache" holds hashes, and the next token is a hash of the entries that it really
// reads. A block reused too early, a plan executed out of order, a token scattered to the wrong slot: each changes tokens.
#pragma once

#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "pipeinfer/base/check.h"
#include "pipeinfer/batch/stage.h"
#include "pipeinfer/pipeline/layout.h"

namespace pipeinfer::testing {

inline uint64_t mix(uint64_t a, uint64_t b) {  // splitmix64's finaliser over both
  uint64_t x = a * 0x9e3779b97f4a7c15ull + b + 0x632be59bd9b4e019ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// What one stage does to a token: its KV entry, then the sum over all entries of the sequence.
inline uint64_t attend(std::vector<uint64_t>& kv, uint64_t hidden, int stage) {
  kv.push_back(mix(hidden, stage));
  uint64_t out = hidden;
  for (uint64_t entry : kv) out = mix(out, entry);
  return out;
}

/// The tokens that a prompt must give, computed without pipeline, slots or blocks.
inline std::vector<int32_t> expected_tokens(std::vector<int32_t> tokens, int n_new, int n_stages,
                                            int vocab_size, const std::vector<int32_t>& eos) {
  std::vector<std::vector<uint64_t>> kv(n_stages);
  std::vector<int32_t> made;
  for (size_t i = 0; i < tokens.size() && static_cast<int>(made.size()) < n_new; ++i) {
    uint64_t hidden = mix(tokens[i], i);
    for (int s = 0; s < n_stages; ++s) hidden = attend(kv[s], hidden, s);
    if (i + 1 < tokens.size()) continue;
    tokens.push_back(static_cast<int32_t>(hidden % vocab_size));
    made.push_back(tokens.back());
    if (std::find(eos.begin(), eos.end(), tokens.back()) != eos.end()) break;
  }
  return made;
}

class FakeStage : public Stage {
 public:
  FakeStage(const Layout& layout, int stage, double max_delay_s = 0)
      : layout_(layout),
        stage_(stage),
        max_delay_s_(max_delay_s),
        rng_(stage),
        kv_(layout.scheduler.blocks * layout.scheduler.block_size, kPoison),
        tables_(layout.scheduler.batch_size),
        open_(layout.scheduler.batch_size, false),
        last_token_(layout.scheduler.batch_size, -1) {}

  int64_t hidden_bytes() const override { return sizeof(uint64_t); }

  void prepare(const StepPlan& plan, Stream&) override { prepared_ = plan.step; }

  void run(const StepPlan& plan, const StepBuffers& buffers, Stream&) override {
    PI_CHECK(prepared_ == plan.step, "step ", plan.step, " was not prepared");
    if (before_run) before_run(plan);
    if (max_delay_s_ > 0)
      std::this_thread::sleep_for(
          std::chrono::duration<double>(std::uniform_real_distribution<double>(0, max_delay_s_)(rng_)));
    for (int32_t slot : plan.closed) close(slot);
    for (const SlotOpen& opened : plan.opened) {
      PI_CHECK(!open_[opened.slot], "slot ", opened.slot, " is opened twice");
      open_[opened.slot] = true;
      last_token_[opened.slot] = -1;
    }
    for (const BlockGrant& grant : plan.granted) {
      PI_CHECK(open_[grant.slot], "blocks for the closed slot ", grant.slot);
      tables_[grant.slot].insert(tables_[grant.slot].end(), grant.blocks.begin(), grant.blocks.end());
    }
    int token = 0, sample = 0;
    for (const StepRow& row : plan.rows)
      for (int i = 0; i < row.n_tokens; ++i, ++token) {
        const uint64_t out = forward(plan, row, i, buffers, token);
        if (buffers.hidden_out) static_cast<uint64_t*>(const_cast<void*>(buffers.hidden_out))[token] = out;
        if (i < row.n_tokens - row.n_samples || !buffers.sampled) continue;
        buffers.sampled[sample] = static_cast<int32_t>(out % layout_.vocab_size);
        if (stage_ == 0) last_token_[row.slot] = buffers.sampled[sample];
        ++sample;
      }
  }

  void take_tokens(const StepPlan& plan, const int32_t* sampled, Stream&) override {
    for (const StepRow& row : plan.rows)
      for (int i = 0; i < row.n_samples; ++i) last_token_[row.slot] = *sampled++;
  }

  /// Called before each step: for faults.
  std::function<void(const StepPlan&)> before_run;

 private:
  static constexpr uint64_t kPoison = 0xdeadbeefdeadbeefull;

  void close(int32_t slot) {
    PI_CHECK(open_[slot], "slot ", slot, " is closed twice");
    open_[slot] = false;
    tables_[slot].clear();
  }

  uint64_t forward(const StepPlan& plan, const StepRow& row, int i, const StepBuffers& buffers, int token) {
    PI_CHECK(open_[row.slot], "a row of the closed slot ", row.slot);
    const int position = row.position + i;
    uint64_t hidden;
    if (stage_ == 0) {
      const int32_t id =
          row.first_token == kFromSlot ? last_token_[row.slot] : plan.tokens[row.first_token + i];
      PI_CHECK(id >= 0, "slot ", row.slot, " has no token to embed");
      hidden = mix(id, position);
    } else {
      hidden = static_cast<const uint64_t*>(buffers.hidden_in)[token];
    }
    // Only entries that were written for this very history give the expected hash.
    std::vector<uint64_t> kv;
    for (int p = 0; p < position; ++p) kv.push_back(entry(row.slot, p));
    const uint64_t out = attend(kv, hidden, stage_);
    entry(row.slot, position) = kv.back();
    return out;
  }

  uint64_t& entry(int32_t slot, int position) {
    const int block_size = layout_.scheduler.block_size;
    PI_CHECK(position / block_size < static_cast<int>(tables_[slot].size()), "no block for position ",
             position);
    return kv_[tables_[slot][position / block_size] * block_size + position % block_size];
  }

  const Layout layout_;
  const int stage_;
  uint64_t prepared_ = ~uint64_t{0};
  const double max_delay_s_;
  std::mt19937 rng_;
  std::vector<uint64_t> kv_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<bool> open_;
  std::vector<int32_t> last_token_;
};

}  // namespace pipeinfer::testing

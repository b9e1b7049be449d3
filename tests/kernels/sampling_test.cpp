#include <algorithm>
#include <map>
#include <numeric>

#include "harness.h"

namespace pipeinfer::kernels {
namespace {

/// Probabilities of all tokens, written as in transformers' processors: each masks what it excludes.
std::vector<double> probabilities(const std::vector<float>& logits, const std::vector<bool>& seen,
                                  const SamplingParams& params) {
  const size_t n = logits.size();
  std::vector<double> score(logits.begin(), logits.end());
  for (size_t i = 0; i < n; ++i) {
    if (seen[i]) score[i] *= score[i] < 0 ? params.repetition_penalty : 1 / double{params.repetition_penalty};
    score[i] /= params.temperature;
  }
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score[a] > score[b]; });
  std::vector<double> p(n, 0.0);
  const size_t k = params.top_k > 0 ? std::min<size_t>(params.top_k, n) : n;
  double total = 0;
  for (size_t i = 0; i < k; ++i) total += p[order[i]] = std::exp(score[order[i]] - score[order[0]]);
  double kept = 0;
  for (size_t i = 0; i < n; ++i) {
    if (i > 0 && kept >= params.top_p && params.top_p < 1) p[order[i]] = 0;
    kept += p[order[i]] / total;
  }
  total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= total;
  return p;
}

class Sampling : public KernelTest {
 protected:
  /// Tables for slots of these parameters, with nothing seen.
  void open(const std::vector<SamplingParams>& params, int vocab) {
    const int n = static_cast<int>(params.size()), words = (vocab + 31) / 32;
    sampling_ = std::make_unique<Array<SamplingParams>>(n);
    prompts_ = std::make_unique<Array<int32_t>>(std::vector<int32_t>(n, -1), stream_);
    seen_ = std::make_unique<Array<uint32_t>>(std::vector<uint32_t>(n * words, ~0u), stream_);
    last_ = std::make_unique<Array<int32_t>>(std::vector<int32_t>(n, -7), stream_);
    sampling_->poison(stream_);
    slots_ = {sampling_->data(), prompts_->data(), seen_->data(), last_->data(), words};
    std::vector<SlotEntry> entries(n);
    for (int i = 0; i < n; ++i) entries[i] = {i, 100 + i, params[i]};
    const Array<SlotEntry> on_device(entries, stream_);
    open_slots(slots_, on_device.data(), n, stream_);
    Array<int32_t>::wait(stream_);
  }

  std::vector<int32_t> draw(const std::vector<float>& logits, int vocab, const std::vector<int32_t>& slot,
                            const std::vector<int32_t>& position) {
    const Array<float> rows(logits, stream_);
    const Array<int32_t> slot_of(slot, stream_), position_of(position, stream_);
    Array<int32_t> out(slot.size());
    out.poison(stream_);
    sample(out.data(), rows.data(), slot_of.data(), position_of.data(), slots_, static_cast<int>(slot.size()),
           vocab, stream_);
    return out.read(stream_);
  }

  void mark(const std::vector<int32_t>& slot, const std::vector<int32_t>& token) {
    const Array<int32_t> slot_of(slot, stream_), ids(token, stream_);
    mark_seen(slots_, slot_of.data(), ids.data(), static_cast<int>(slot.size()), stream_);
    Array<int32_t>::wait(stream_);
  }

  std::vector<bool> seen(int slot, int vocab) {
    const std::vector<uint32_t> words = seen_->read(stream_);
    std::vector<bool> bits(vocab);
    for (int i = 0; i < vocab; ++i) bits[i] = words[slot * slots_.seen_words + i / 32] >> i % 32 & 1;
    return bits;
  }

  SlotTable slots_;
  std::unique_ptr<Array<SamplingParams>> sampling_;
  std::unique_ptr<Array<int32_t>> prompts_, last_;
  std::unique_ptr<Array<uint32_t>> seen_;
};

TEST_F(Sampling, SlotTablesFollowTheirEntries) {
  const int vocab = 70;
  std::vector<SamplingParams> params(3);
  params[1].temperature = 0.5f;
  params[1].seed = 9;
  open(params, vocab);
  EXPECT_EQ(prompts_->read(stream_), (std::vector<int32_t>{100, 101, 102}));
  EXPECT_EQ(sampling_->read(stream_)[1].temperature, 0.5f);
  EXPECT_EQ(sampling_->read(stream_)[1].seed, 9u);
  EXPECT_EQ(seen_->read(stream_), std::vector<uint32_t>(9, 0));

  mark({0, 2, 2, 2, 1}, {69, 0, 31, 32, -1});
  std::vector<uint32_t> words(9, 0);
  words[2] = 1u << 5;
  words[6] = 1u << 31 | 1;
  words[7] = 1;
  EXPECT_EQ(seen_->read(stream_), words);

  const Array<SlotEntry> again(std::vector<SlotEntry>{{2, 5, params[1]}}, stream_);
  open_slots(slots_, again.data(), 1, stream_);
  words[6] = words[7] = 0;
  EXPECT_EQ(seen_->read(stream_), words);
  EXPECT_EQ(prompts_->read(stream_), (std::vector<int32_t>{100, 101, 5}));

  const Array<int32_t> slot(std::vector<int32_t>{2, 0, 0, 0}, stream_), token({4, 5, 6, 7}, stream_);
  set_last_token(slots_, slot.data(), token.data(), 4, stream_);
  EXPECT_EQ(last_->read(stream_), (std::vector<int32_t>{7, -7, 4}));

  Array<int32_t> table(std::vector<int32_t>(12, -1), stream_);
  const Array<BlockEntry> entries(std::vector<BlockEntry>{{2, 3, 8}, {0, 0, 5}, {1, 2, 6}}, stream_);
  set_blocks(table.data(), entries.data(), 3, 4, stream_);
  EXPECT_EQ(table.read(stream_), (std::vector<int32_t>{5, -1, -1, -1, -1, -1, 6, -1, -1, -1, -1, 8}));
}

TEST_F(Sampling, TablesThatAStageDoesNotKeepMayBeNull) {
  Array<int32_t> last(std::vector<int32_t>{1, 2}, stream_);
  SlotTable slots;
  slots.last_token = last.data();
  const Array<SlotEntry> entry(std::vector<SlotEntry>{{0, 5, {}}}, stream_);
  open_slots(slots, entry.data(), 1, stream_);
  mark_seen(slots, last.data(), last.data(), 1, stream_);
  EXPECT_EQ(last.read(stream_), (std::vector<int32_t>{1, 2}));
}

TEST_F(Sampling, GreedyTakesTheLargestAndTheSmallestIdOfEquals) {
  for (int vocab : {1, 5, 257, 32000, 128256}) {
    const int n = 6;
    open(std::vector<SamplingParams>(n), vocab);
    std::vector<float> logits = normal(size_t(n) * vocab, 5);
    std::vector<int32_t> slot(n), expected(n);
    for (int i = 0; i < n; ++i) {
      float* row = logits.data() + size_t(i) * vocab;
      slot[i] = n - 1 - i;
      if (i % 2) row[integer(0, vocab - 1)] = row[integer(0, vocab - 1)] = row[integer(0, vocab - 1)] = 40;
      expected[i] = static_cast<int32_t>(std::max_element(row, row + vocab) - row);
    }
    EXPECT_EQ(draw(logits, vocab, slot, std::vector<int32_t>(n, 3)), expected) << vocab;
    for (int i = 0; i < n; ++i) {
      std::vector<bool> only(vocab);
      only[expected[i]] = true;
      EXPECT_EQ(seen(slot[i], vocab), only) << "the sampled token, and no other, is seen";
    }
  }
}

TEST_F(Sampling, OddLogitsNeverGiveATokenOutOfRange) {
  const int vocab = 1000;
  for (float temperature : {0.0f, 1.0f, 1e-30f}) {
    SamplingParams params;
    params.temperature = temperature;
    params.top_k = 5;
    params.top_p = 0.9f;
    params.repetition_penalty = 1.3f;
    open(std::vector<SamplingParams>(5, params), vocab);
    std::vector<float> logits(5 * vocab, NAN);
    logits[1 * vocab + 7] = -3;
    std::fill_n(logits.begin() + 2 * vocab, vocab, -INFINITY);
    std::fill_n(logits.begin() + 3 * vocab, vocab, 1.0f);
    logits[3 * vocab + 9] = INFINITY;
    std::fill_n(logits.begin() + 4 * vocab, vocab, -3e38f);
    const std::vector<int32_t> tokens = draw(logits, vocab, {0, 1, 2, 3, 4}, {1, 2, 3, 4, 5});
    EXPECT_EQ(tokens[0], 0);
    EXPECT_EQ(tokens[1], 7);
    EXPECT_EQ(tokens[2], 0);
    EXPECT_EQ(tokens[3], 9);
    EXPECT_GE(tokens[4], 0);
    EXPECT_LT(tokens[4], 5) << "ties of top_k go to the smallest ids";
  }
}

TEST_F(Sampling, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogits) {
  SamplingParams params;
  params.repetition_penalty = 2;
  open({params, params}, 40);
  std::vector<float> logits(80, -9);
  logits[33] = 4;  // seen: 2
  logits[5] = 3;
  logits[40 + 1] = -1;  // seen: -2
  logits[40 + 39] = -1.5f;
  mark({0, 1}, {33, 1});
  EXPECT_EQ(draw(logits, 40, {0, 1}, {0, 0}), (std::vector<int32_t>{5, 39}));
  logits[5] = 1.5f;  // seen by now, since it was sampled: 0.75
  EXPECT_EQ(draw(logits, 40, {0, 1}, {1, 1})[0], 33);
}

TEST_F(Sampling, DrawsFollowTheDistribution) {
  const int n = 20000;
  std::vector<SamplingParams> all(7);
  for (SamplingParams& params : all) params.temperature = 1;
  all[1].temperature = 0.5f;
  all[2].top_k = 5;
  all[3].top_p = 0.7f;
  all[4] = {.temperature = 2, .top_k = 20, .top_p = 0.8f, .repetition_penalty = 1.7f};
  all[5] = {.temperature = 1, .top_k = 1};
  all[6] = {.temperature = 1, .top_p = 0};
  for (int vocab : {37, 600}) {
    const std::vector<float> logits = normal(vocab, 2);
    for (SamplingParams params : all) {
      // One slot a draw: each sees the same tokens, and a draw's place is told by its id alone.
      std::vector<SamplingParams> slots(500, params);
      std::map<int, int> counts;
      std::vector<bool> marked(vocab);
      for (int round = 0; round < n / 500; ++round) {
        for (int i = 0; i < 500; ++i) slots[i].id_hash = (round * 500 + i) * 0x9e3779b97f4a7c15ull;
        open(slots, vocab);
        std::vector<int32_t> slot, seen_slot, seen_token;
        std::vector<float> rows;
        for (int i = 0; i < 500; ++i) {
          slot.push_back(i);
          rows.insert(rows.end(), logits.begin(), logits.end());
          for (int token = 0; token < vocab; token += 3) {
            seen_slot.push_back(i);
            seen_token.push_back(token);
            marked[token] = true;
          }
        }
        mark(seen_slot, seen_token);
        for (int32_t token : draw(rows, vocab, slot, std::vector<int32_t>(500, 11))) ++counts[token];
      }
      const std::vector<double> p = probabilities(logits, marked, params);
      double chi = 0, rest = 0;
      int cells = 0, rest_count = 0;
      for (int i = 0; i < vocab; ++i) {
        if (p[i] == 0) {
          ASSERT_EQ(counts[i], 0) << "token " << i << " is excluded";
        } else if (p[i] * n < 10) {
          rest += p[i] * n;
          rest_count += counts[i];
        } else {
          chi += std::pow(counts[i] - p[i] * n, 2) / (p[i] * n);
          ++cells;
        }
      }
      if (rest > 10) {
        chi += std::pow(rest_count - rest, 2) / rest;
        ++cells;
      }
      // 7 standard deviations of chi-square with `cells` degrees of freedom: seeds are fixed but logits are not.
      EXPECT_LT(chi, cells + 7 * std::sqrt(2.0 * cells) + 10)
          << "vocab " << vocab << " temperature " << params.temperature << " top_k " << params.top_k
          << " top_p " << params.top_p;
    }
  }
}

TEST_F(Sampling, ADrawDependsOnSeedIdAndPositionOnly) {
  const int vocab = 5000;
  const SamplingParams base{.temperature = 1.5f, .seed = 1, .id_hash = 2};
  std::vector<SamplingParams> params(4, base);
  params[2].seed = 3;
  params[3].id_hash = 4;
  open(params, vocab);
  const std::vector<float> row = normal(vocab);
  const auto rows = [&](int n) {
    std::vector<float> all;
    for (int i = 0; i < n; ++i) all.insert(all.end(), row.begin(), row.end());
    return all;
  };
  std::vector<int32_t> by_one, other_slot, other_seed, other_id;
  for (int position = 0; position < 16; ++position) {
    const std::vector<int32_t> four(4, position);
    const std::vector<int32_t> tokens = draw(rows(4), vocab, {0, 1, 2, 3}, four);
    by_one.push_back(tokens[0]);
    other_slot.push_back(tokens[1]);
    other_seed.push_back(tokens[2]);
    other_id.push_back(tokens[3]);
  }
  EXPECT_EQ(by_one, other_slot);
  EXPECT_NE(by_one, other_seed);
  EXPECT_NE(by_one, other_id);
  EXPECT_NE(by_one, std::vector<int32_t>(16, by_one[0])) << "positions draw anew";
  std::vector<int32_t> positions(16);
  std::iota(positions.begin(), positions.end(), 0);
  EXPECT_EQ(draw(rows(16), vocab, std::vector<int32_t>(16, 1), positions), by_one) << "one call of 16 rows";
}

TEST_F(Sampling, TheDrawIsTheInverseOfTheCumulatedProbability) {
  // Values that no other implementation may change: results of a run are resumed by later versions.
  const int vocab = 100;
  open({SamplingParams{.temperature = 1, .seed = 7, .id_hash = 0x1234567890abcdef}}, vocab);
  std::vector<float> flat(8 * vocab, 0.25f);
  std::vector<int32_t> positions{0, 1, 2, 3, 100, 1000, 2046, 2047};
  EXPECT_EQ(draw(flat, vocab, std::vector<int32_t>(8, 0), positions),
            (std::vector<int32_t>{83, 24, 51, 47, 5, 66, 42, 21}));
}

TEST_F(Sampling, TopLogitsAreTheLargestInOrder) {
  for (int vocab : {3, 5, 1000, 50257}) {
    const int n = 4;
    std::vector<float> logits = normal(size_t(n) * vocab);
    for (int i = 0; i < 2 * n; ++i) logits[integer(0, n * vocab - 1)] = 9;  // ties
    Array<TopLogit> out(n * kTopLogits);
    out.poison(stream_);
    top_logits(out.data(), upload(logits).data(), n, vocab, stream_);
    const std::vector<TopLogit> top = out.read(stream_);
    for (int i = 0; i < n; ++i) {
      std::vector<int> order(vocab);
      std::iota(order.begin(), order.end(), 0);
      const float* row = logits.data() + size_t(i) * vocab;
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
      for (int k = 0; k < kTopLogits; ++k) {
        EXPECT_EQ(top[i * kTopLogits + k].token, k < vocab ? order[k] : -1);
        EXPECT_EQ(top[i * kTopLogits + k].logit, k < vocab ? row[order[k]] : -INFINITY);
      }
    }
  }
}

}  // namespace
}  // namespace pipeinfer::kernels

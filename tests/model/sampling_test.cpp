// What a stage keeps per slot: seen tokens, parameters, last token, block table.
#include <gtest/gtest.h>

#include <algorithm>

#include "../checkpoint/safetensors_builder.h"
#include "harness.h"

namespace pipeinfer::test {

namespace {

ModelConfig config_of_two_layers() {
  ModelConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 40;
  config.n_layers = 2;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 8;
  config.vocab_size = 300;
  config.max_position_embeddings = 256;
  return config;
}

}  // namespace

class SlotTest : public testing::TestWithParam<Backend> {
 protected:
  SlotTest() : model_(make_model(config_of_two_layers(), GetParam().dtype, 3)) {
    write_checkpoint(model_, folder_.path());
    options_.dtype = GetParam().dtype;
    options_.slots = 2;
    options_.blocks = 40;
    options_.block_size = 8;
    options_.context = 256;
    options_.max_tokens = 160;
  }

  Chain chain(const std::vector<int>& ends) {
    return Chain(model_.config, Checkpoint(folder_.path()), ends, options_, GetParam());
  }

  // Prefills `prompt` in slot 0, and returns the n tokens that follow.
  std::vector<int32_t> generate(Chain& chain, const std::vector<int32_t>& prompt,
                                const SamplingParams& sampling, int n) {
    Planner planner(options_, 1);
    Live sequence;
    sequence.tokens = prompt;
    sequence.prompt_tokens = prompt.size();
    StepPlan plan = planner.start();
    planner.open(plan, sequence, 0);
    plan.opened.back().sampling = sampling;
    planner.prefill(plan, sequence, prompt.size(), 1);
    for (int i = 0; i < n; ++i) {
      if (i > 0) {
        plan = planner.start();
        planner.decode(plan, sequence);
      }
      sequence.tokens.push_back(chain.run(plan).tokens.at(0));
    }
    return {sequence.tokens.begin() + prompt.size(), sequence.tokens.end()};
  }

  TestFolder folder_;
  TestModel model_;
  StageOptions options_;
};

TEST_P(SlotTest, PenaltySeesPromptAndSampledTokensOfItsSlotOnly) {
  Chain split = chain({1, 2});
  // So strong that a seen token whose logit is positive falls behind every unseen one.
  const SamplingParams penalty = {.repetition_penalty = 1e6f};
  std::mt19937 engine(1);
  const std::vector<int32_t> prompt = random_tokens(engine, 40, model_.config.vocab_size);
  const std::vector<int32_t> plain = generate(split, prompt, {}, 30);
  const std::vector<int32_t> seen_none_again = generate(split, prompt, penalty, 30);
  std::vector<int32_t> all = prompt;
  for (int32_t token : seen_none_again) {
    EXPECT_EQ(std::count(all.begin(), all.end(), token), 0) << token;
    all.push_back(token);
  }
  // The slot opens anew: nothing of the penalty or of what was seen is left.
  EXPECT_EQ(generate(split, prompt, {}, 30), plain);
  EXPECT_EQ(generate(split, prompt, penalty, 30), seen_none_again);
}

TEST_P(SlotTest, SeedAndIdDecideWhatIsSampled) {
  Chain whole = chain({2});
  SamplingParams sampling = {.temperature = 2, .top_k = 100, .top_p = 0.95f, .seed = 1, .id_hash = 5};
  const std::vector<int32_t> first = generate(whole, {1, 2, 3}, sampling, 20);
  EXPECT_EQ(generate(whole, {1, 2, 3}, sampling, 20), first);
  sampling.seed = 2;
  EXPECT_NE(generate(whole, {1, 2, 3}, sampling, 20), first);
  sampling = {.temperature = 2, .top_k = 100, .top_p = 0.95f, .seed = 1, .id_hash = 6};
  EXPECT_NE(generate(whole, {1, 2, 3}, sampling, 20), first);
}

TEST_P(SlotTest, TopLogitsAreThoseOfEachPosition) {
  Chain whole = chain({2});
  Planner planner(options_, 1);
  std::mt19937 engine(1);
  Live sequence;
  sequence.tokens = random_tokens(engine, 150, model_.config.vocab_size);  // more positions than kHeadRows
  sequence.prompt_tokens = 150;
  StepPlan plan = planner.start();
  plan.want_top = true;
  planner.open(plan, sequence, 1);
  planner.prefill(plan, sequence, 150, 150);
  const StepOutput output = whole.run(plan);
  ASSERT_EQ(output.logits.size(), 150u);
  ASSERT_EQ(output.top.size(), 150u * kTopLogits);
  for (int i = 0; i < 150; ++i) {
    std::vector<float> sorted = output.logits[i];
    std::sort(sorted.rbegin(), sorted.rend());
    for (int k = 0; k < kTopLogits; ++k) {
      const TopLogit& top = output.top[i * kTopLogits + k];
      EXPECT_EQ(top.logit, sorted[k]);
      EXPECT_EQ(top.logit, output.logits[i].at(top.token));
    }
    EXPECT_EQ(output.tokens[i], output.top[i * kTopLogits].token);
  }
  // The last of the positions rules what comes next.
  sequence.tokens.push_back(output.tokens.back());
  StepPlan from_slot = planner.start();
  planner.decode(from_slot, sequence);
  StepPlan from_host = from_slot;
  from_host.rows[0].first_token = 0;
  from_host.tokens = {output.tokens.back()};
  const StepOutput of_slot = whole.run(from_slot);
  EXPECT_EQ(of_slot.logits, whole.run(from_host).logits);
}

TEST_P(SlotTest, TooManyTokensAreAnInternalError) {
  Chain whole = chain({2});
  StepPlan plan;
  plan.rows = {{0, 0, 161, 0, 0}};
  plan.tokens.assign(161, 1);
  Stream stream(GetParam().device);
  EXPECT_THROW(whole.stage(0).prepare(plan, stream), Error);
}

INSTANTIATE_TEST_SUITE_P(Backends, SlotTest, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace pipeinfer::test

// LlamaStage against the double precision reference, and split against whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "../checkpoint/safetensors_builder.h"
#include "harness.h"

namespace pipeinfer::test {

namespace {

struct Feature {
  std::string name;
  ModelConfig config;
};

void PrintTo(const Feature& feature, std::ostream* out) { *out << feature.name; }

ModelConfig small_config() {
  ModelConfig config;
  config.hidden_size = 48;
  config.intermediate_size = 56;
  config.n_layers = 3;
  config.n_heads = 4;
  config.n_kv_heads = 4;
  config.head_dim = 12;
  config.vocab_size = 101;
  config.max_position_embeddings = 64;
  return config;
}

std::vector<Feature> features() {
  std::vector<Feature> all;
  const auto add = [&](const std::string& name, auto change) {
    ModelConfig config = small_config();
    change(config);
    all.push_back({name, config});
  };
  add("plain", [](ModelConfig&) {});
  add("head_dim_100", [](ModelConfig& config) {
    config.hidden_size = 200;
    config.n_heads = config.n_kv_heads = 2;
    config.head_dim = 100;
  });
  add("gqa", [](ModelConfig& config) { config.n_kv_heads = 2; });
  add("mqa_explicit_head_dim", [](ModelConfig& config) {
    config.n_kv_heads = 1;
    config.head_dim = 32;
  });
  add("odd_intermediate_size", [](ModelConfig& config) { config.intermediate_size = 52; });  // not fused
  add("tied", [](ModelConfig& config) { config.tie_word_embeddings = true; });
  add("biases", [](ModelConfig& config) { config.attention_bias = config.mlp_bias = true; });
  add("rope_theta_and_eps", [](ModelConfig& config) {
    config.rope.theta = 500000;
    config.rms_norm_eps = 0.1;
  });
  add("rope_linear", [](ModelConfig& config) { config.rope = {.type = RopeType::linear, .factor = 2}; });
  add("rope_dynamic", [](ModelConfig& config) {
    config.max_position_embeddings = 24;
    config.rope = {.type = RopeType::dynamic, .factor = 3};
  });
  add("rope_llama3", [](ModelConfig& config) {
    config.rope = {.type = RopeType::llama3, .factor = 8, .original_max_position = 32};
  });
  return all;
}

StageOptions options_for(const ModelConfig& config, DType dtype) {
  StageOptions options;
  options.last_layer = config.n_layers;
  options.dtype = dtype;
  options.slots = 4;
  options.block_size = 8;
  options.blocks = 30;
  options.context = config.context();
  options.max_tokens = 24;
  options.steps_in_flight = 3;
  return options;
}

/// What a run of several sequences gave.
struct Served {
  std::vector<Live> sequences;
  std::vector<std::map<int, std::vector<float>>> logits;  // of each sequence by position
};

// Steps of random decode rows and prompt chunks, a preemption among them, until every sequence has `new_tokens`.
Served serve(Chain& chain, const ModelConfig& config, const StageOptions& options, int new_tokens) {
  std::mt19937 engine(7);
  Planner planner(options, 5);
  Served served;
  for (int length : {1, 17, 40}) {
    Live sequence;
    sequence.tokens = random_tokens(engine, length, config.vocab_size);
    sequence.prompt_tokens = length;
    served.sequences.push_back(sequence);
  }
  served.logits.resize(served.sequences.size());
  const auto random = [&](int n) { return std::uniform_int_distribution<int>(0, n - 1)(engine); };
  const auto known = [](const Live& sequence) { return static_cast<int32_t>(sequence.tokens.size()); };
  const auto is_done = [&](const Live& s) { return known(s) == s.prompt_tokens + new_tokens; };
  bool preempted = false;

  while (!std::all_of(served.sequences.begin(), served.sequences.end(), is_done)) {
    StepPlan plan = planner.start();
    std::vector<int> in_step;  // sequences of the rows
    Live& victim = served.sequences[1];
    if (!preempted && known(victim) == victim.prompt_tokens + 3) {
      planner.close(plan, victim);
      preempted = true;
    }
    std::vector<int> order;
    for (size_t i = 0; i < served.sequences.size(); ++i)
      if (!is_done(served.sequences[i]) && random(4) > 0) order.push_back(i);
    for (int i : order) {
      Live& s = served.sequences[i];
      if (s.slot >= 0 && s.done >= s.prompt_tokens && s.done + 1 == known(s)) {
        planner.decode(plan, s);
        in_step.push_back(i);
      }
    }
    for (int i : order) {
      Live& s = served.sequences[i];
      if (std::count(in_step.begin(), in_step.end(), i)) continue;
      if (s.slot < 0) planner.open(plan, s, preempted && i == 1 ? 3 : i);
      const int n = std::min({1 + random(9), known(s) - s.done, options.max_tokens - plan.n_tokens()});
      if (n == 0) continue;
      planner.prefill(plan, s, n, s.done + n == known(s) ? 1 + random(2) * (n - 1) : random(2) * n);
      in_step.push_back(i);
    }
    if (in_step.empty()) continue;

    const StepOutput output = chain.run(plan);
    int sample = 0;
    for (size_t r = 0; r < plan.rows.size(); ++r) {
      const StepRow& row = plan.rows[r];
      Live& s = served.sequences[in_step[r]];
      for (int k = 0; k < row.n_samples; ++k, ++sample) {
        const int position = row.position + row.n_tokens - row.n_samples + k;
        served.logits[in_step[r]][position] = output.logits[sample];
      }
      if (row.n_samples > 0 && s.done == known(s)) s.tokens.push_back(output.tokens[sample - 1]);
    }
  }
  return served;
}

int argmax(const std::vector<float>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

}  // namespace

class LlamaTest : public testing::TestWithParam<std::tuple<Backend, Feature>> {};

TEST_P(LlamaTest, EqualsReference) {
  const auto& [backend, feature] = GetParam();
  const TestModel model = make_model(feature.config, backend.dtype, 1);
  const TestFolder folder;
  write_checkpoint(model, folder.path());
  const StageOptions options = options_for(model.config, backend.dtype);
  Chain chain(model.config, Checkpoint(folder.path()), {3}, options, backend);
  const Served served = serve(chain, model.config, options, 8);

  for (size_t i = 0; i < served.sequences.size(); ++i) {
    const Live& sequence = served.sequences[i];
    const auto expected = reference_logits(model, sequence.tokens, sequence.prompt_tokens);
    EXPECT_GE(served.logits[i].size(), 8u);
    for (const auto& [position, logits] : served.logits[i])
      EXPECT_LE(relative_error(logits, expected[position]), backend.tolerance) << i << " at " << position;
    for (size_t position = sequence.prompt_tokens - 1; position + 1 < sequence.tokens.size(); ++position)
      EXPECT_EQ(sequence.tokens[position + 1], argmax(served.logits[i].at(position)))
          << i << " at " << position;
  }
}

TEST_P(LlamaTest, SplitEqualsWhole) {
  const auto& [backend, feature] = GetParam();
  const TestModel model = make_model(feature.config, backend.dtype, 2);
  const TestFolder folder;
  write_checkpoint(model, folder.path());
  const Checkpoint checkpoint(folder.path());
  const StageOptions options = options_for(model.config, backend.dtype);
  Chain whole(model.config, checkpoint, {3}, options, backend);
  const Served expected = serve(whole, model.config, options, 6);

  for (const std::vector<int>& ends : {std::vector<int>{1, 3}, {2, 3}, {1, 2, 3}}) {
    Chain chain(model.config, checkpoint, ends, options, backend);
    const Served served = serve(chain, model.config, options, 6);
    for (size_t i = 0; i < served.sequences.size(); ++i)
      EXPECT_EQ(served.sequences[i].tokens, expected.sequences[i].tokens);
    EXPECT_EQ(served.logits, expected.logits);  // bit for bit
  }
}

INSTANTIATE_TEST_SUITE_P(Features, LlamaTest,
                         testing::Combine(testing::ValuesIn(backends()), testing::ValuesIn(features())),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" + std::get<1>(info.param).name;
                         });

}  // namespace pipeinfer::test

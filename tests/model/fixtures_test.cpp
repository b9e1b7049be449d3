// LlamaStage against what transformers generated: tests/fixtures, on the random checkpoints of
// scripts/make_random_checkpoint.py (PIPEINFER_PYTHON runs it; it needs numpy).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "../checkpoint/safetensors_builder.h"
#include "harness.h"

namespace pipeinfer::test {

namespace {

struct Reference {
  Live sequence;                  // its prompt
  std::vector<int32_t> expected;  // the tokens that follow
  nlohmann::json top;             // of each: {"ids", "logits"}, five each
};

std::vector<Backend> fp32_backends() {  // as the fixtures are
  std::vector<Backend> fp32 = backends();
  std::erase_if(fp32, [](const Backend& backend) { return backend.dtype != DType::fp32; });
  return fp32;
}

std::vector<Reference> read_references(const std::string& name) {
  std::vector<Reference> references;
  std::ifstream file(PIPEINFER_SOURCE_DIR "/tests/fixtures/" + name + ".reference.jsonl");
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    Reference reference;
    reference.sequence.tokens = json.at("prompt_token_ids").get<std::vector<int32_t>>();
    reference.sequence.prompt_tokens = reference.sequence.tokens.size();
    reference.expected = json.at("token_ids").get<std::vector<int32_t>>();
    reference.top = json.at("top");
    references.push_back(std::move(reference));
  }
  return references;
}

void make_checkpoint(const std::string& shape, const std::string& folder) {
  const std::string command =
      cat("'" PIPEINFER_PYTHON "' '" PIPEINFER_SOURCE_DIR "/scripts/make_random_checkpoint.py' ", shape, " '",
          folder, "'");
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

void expect_position(const Reference& reference, const std::vector<float>& logits, int32_t token) {
  const Live& sequence = reference.sequence;
  const size_t index = sequence.tokens.size() - sequence.prompt_tokens;
  EXPECT_EQ(token, reference.expected.at(index)) << "new token " << index;
  const auto ids = reference.top.at(index).at("ids").get<std::vector<int>>();
  const auto expected = reference.top.at(index).at("logits").get<std::vector<double>>();
  const double largest = *std::max_element(expected.begin(), expected.end());
  for (size_t k = 0; k < ids.size(); ++k)
    EXPECT_NEAR(logits.at(ids[k]), expected[k], 1e-4 * largest) << "new token " << index << ", id " << ids[k];
}

}  // namespace

class FixtureTest : public testing::TestWithParam<std::tuple<Backend, std::string>> {};

// All prompts at once: prompt chunks of changing length beside decode rows, over two stages.
TEST_P(FixtureTest, LogitsAndTokensEqualTransformers) {
  const auto& [backend, name] = GetParam();
  const TestFolder folder;
  make_checkpoint(name, folder.path());
  const ModelConfig config = load_model_config(folder.path());
  std::vector<Reference> references = read_references(name);
  ASSERT_EQ(references.size(), 20u);

  StageOptions options;
  options.slots = references.size();
  options.context = config.context();
  options.blocks = options.slots * options.max_blocks();
  options.max_tokens = 100;
  Chain chain(config, Checkpoint(folder.path()), {config.n_layers / 2, config.n_layers}, options, backend);
  Planner planner(options, 1);

  const auto is_done = [](const Reference& r) {
    return r.sequence.tokens.size() == r.sequence.prompt_tokens + r.expected.size();
  };
  while (!std::all_of(references.begin(), references.end(), is_done)) {
    StepPlan plan = planner.start();
    std::vector<Reference*> of_sample;
    for (Reference& r : references) {
      if (r.sequence.done < r.sequence.prompt_tokens || is_done(r)) continue;
      planner.decode(plan, r.sequence);
      of_sample.push_back(&r);
    }
    int32_t chunk = 1;
    for (Reference& r : references) {
      Live& s = r.sequence;
      chunk = chunk * 7 % 61;
      const int32_t n = std::min({chunk, s.prompt_tokens - s.done, options.max_tokens - plan.n_tokens()});
      if (n <= 0) continue;
      if (s.slot < 0) planner.open(plan, s, &r - references.data());
      planner.prefill(plan, s, n, s.done + n == s.prompt_tokens);
      if (s.done == s.prompt_tokens) of_sample.push_back(&r);
    }
    const StepOutput output = chain.run(plan);
    ASSERT_EQ(output.tokens.size(), of_sample.size());
    for (size_t i = 0; i < of_sample.size(); ++i) {
      expect_position(*of_sample[i], output.logits[i], output.tokens[i]);
      of_sample[i]->sequence.tokens.push_back(output.tokens[i]);
    }
    ASSERT_FALSE(HasFailure());
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FixtureTest,
                         testing::Combine(testing::ValuesIn(fp32_backends()),
                                          testing::Values("tiny", "tiny-gqa", "tiny-tied", "tiny-bias",
                                                          "tiny-hd64", "tiny-linear", "tiny-dynamic",
                                                          "tiny-llama3")),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param).name + "_" + std::get<1>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace pipeinfer::test

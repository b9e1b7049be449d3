// What a stage reads of a checkpoint, what it says of a wrong one, and what it plans to allocate.
#include <gtest/gtest.h>

#include <cmath>

#include "../checkpoint/safetensors_builder.h"
#include "harness.h"
#include "pipeinfer/model/kv_cache.h"

namespace pipeinfer::test {

namespace {

ModelConfig config_of_four_layers() {
  ModelConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 40;
  config.n_layers = 4;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 8;
  config.vocab_size = 50;
  config.max_position_embeddings = 32;
  return config;
}

StageOptions stage_options(int first, int last) {
  return {.first_layer = first,
          .last_layer = last,
          .slots = 2,
          .blocks = 4,
          .block_size = 8,
          .context = 32,
          .max_tokens = 16};
}

}  // namespace

class LoadingTest : public testing::TestWithParam<Backend> {
 protected:
  std::unique_ptr<LlamaStage> load(const TestModel& model, int first, int last) {
    write_checkpoint(model, folder_.path());
    return std::make_unique<LlamaStage>(model.config, stage_options(first, last), Checkpoint(folder_.path()),
                                        GetParam().device);
  }
  TestFolder folder_;
};

TEST_P(LoadingTest, MissingTensorIsNamed) {
  TestModel model = make_model(config_of_four_layers(), DType::fp32, 1);
  model.tensors.erase("model.layers.2.mlp.up_proj.weight");
  expect_usage_error([&] { load(model, 0, 4); }, {folder_.path(), "model.layers.2.mlp.up_proj.weight"});
  load(model, 0, 2);  // not this stage's
}

TEST_P(LoadingTest, MoreLayersThanTheModelHasAreNamed) {
  TestModel model = make_model(config_of_four_layers(), DType::fp32, 1);
  write_checkpoint(model, folder_.path());
  const Checkpoint checkpoint(folder_.path());
  check_weights(model.config, checkpoint);
  model.config.n_layers = 3;
  expect_usage_error([&] { check_weights(model.config, checkpoint); },
                     {folder_.path(), "model.layers.3.", "num_hidden_layers 3"});
}

TEST_P(LoadingTest, WrongShapeIsNamedWithBothShapes) {
  TestModel model = make_model(config_of_four_layers(), DType::fp32, 1);
  auto& tensor = model.tensors.at("model.layers.1.self_attn.k_proj.weight");
  tensor.shape = {8, 64};
  expect_usage_error([&] { load(model, 0, 4); },
                     {"model.safetensors", "model.layers.1.self_attn.k_proj.weight", "[16, 32]", "[8, 64]"});
}

TEST_P(LoadingTest, MissingBiasIsNamed) {
  TestModel model = make_model(config_of_four_layers(), DType::fp32, 1);
  model.config.attention_bias = true;
  expect_usage_error([&] { load(model, 0, 4); }, {"model.layers.0.self_attn.q_proj.bias"});
}

TEST_P(LoadingTest, ReadsOnlyItsOwnTensors) {
  for (const bool tied : {false, true}) {
    ModelConfig config = config_of_four_layers();
    config.tie_word_embeddings = tied;
    write_checkpoint(make_model(config, DType::fp32, 1), folder_.path());
    for (const auto& [first, last] : {std::pair{0, 1}, {1, 3}, {3, 4}, {0, 4}}) {
      const Checkpoint checkpoint(folder_.path());
      const LlamaStage stage(config, stage_options(first, last), checkpoint, GetParam().device);
      EXPECT_EQ(checkpoint.bytes_read(), config.stage_parameters(first, last) * sizeof(float))
          << first << " " << last;
    }
  }
}

TEST_P(LoadingTest, RandomWeightsAreFiniteAndDoNotDependOnTheSplit) {
  const ModelConfig config = config_of_four_layers();
  const Device device = GetParam().device;
  StepPlan plan;
  plan.opened = {{0, 5, {}}};
  plan.granted = {{0, {2}}};
  plan.rows = {{0, 0, 5, 0, 5}};
  plan.tokens = {3, 1, 4, 1, 5};
  Stream stream(device);
  DeviceBuffer hidden(device, 16 * 32 * sizeof(float), "hidden"),
      sampled(device, 16 * sizeof(int32_t), "sampled");

  const auto logits = [&](uint64_t seed, const std::vector<int>& ends) {
    std::vector<float> found;
    StageOptions options = stage_options(0, 0);
    for (int end : ends) {
      options.first_layer = options.last_layer;
      options.last_layer = end;
      LlamaStage stage(config, options, RandomWeights{seed}, device);
      stage.on_logits([&](const StepPlan&, int, int n, const float* values, Stream&) {
        found = to_host(values, n * config.vocab_size, stream);
      });
      DeviceBuffer out(device, hidden.bytes(), "hidden");
      stage.prepare(plan, stream);
      stage.run(plan,
                {.hidden_in = hidden.data(), .hidden_out = out.data(), .sampled = sampled.as<int32_t>()},
                stream);
      std::swap(hidden, out);
      to_host(sampled.as<int32_t>(), 1, stream);  // the stage may go now
    }
    return found;
  };
  const std::vector<float> whole = logits(1, {4});
  ASSERT_EQ(whole.size(), 5u * config.vocab_size);
  float largest = 0;
  for (float value : whole) largest = std::max(largest, std::isfinite(value) ? std::abs(value) : INFINITY);
  EXPECT_GT(largest, 1e-4f);
  EXPECT_LT(largest, 100.f);
  EXPECT_EQ(logits(1, {1, 4}), whole);
  EXPECT_NE(logits(2, {4}), whole);
}

INSTANTIATE_TEST_SUITE_P(Backends, LoadingTest, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

TEST(MemoryPlan, IsKnownBeforeAnythingIsAllocated) {
  const ModelConfig config = model_shape("openllama-3b");
  StageOptions options = {.first_layer = 0,
                          .last_layer = 26,
                          .dtype = DType::fp16,
                          .slots = 64,
                          .blocks = 1000,
                          .block_size = 16,
                          .context = 2048,
                          .max_tokens = 512};
  const int64_t bytes = weight_bytes(config, options);
  const int64_t needed = config.total_parameters() * 2;
  EXPECT_GE(bytes, needed);
  EXPECT_LE(bytes, needed + 256 * 9 * 26);
  EXPECT_EQ(kv_block_bytes(config, options), 16 * 26 * 2 * 3200 * 2);
  const int64_t work = workspace_bytes(config, options);
  options.max_tokens = 1024;
  EXPECT_GT(workspace_bytes(config, options), work);

  int64_t split = 0;
  for (const auto& [first, last] : {std::pair{0, 13}, {13, 26}}) {
    options.first_layer = first;
    options.last_layer = last;
    EXPECT_EQ(kv_block_bytes(config, options), 16 * 13 * 2 * 3200 * 2);
    split += weight_bytes(config, options);
  }
  EXPECT_EQ(split, bytes);
}

TEST(KvCache, BlocksOfALayerAreContiguousAndEndWithTheNullBlock) {
  const ModelConfig config = config_of_four_layers();
  const KvCache cache(config, stage_options(1, 3), Device{});
  EXPECT_EQ(cache.null_block(), 4);
  const kernels::KvLayer first = cache.layer(0), second = cache.layer(1);
  EXPECT_NE(first.data, second.data);
  EXPECT_EQ(first.block_size, 8);
  EXPECT_EQ(first.n_kv_heads, 2);
  EXPECT_EQ(first.head_dim, 8);
}

}  // namespace pipeinfer::test

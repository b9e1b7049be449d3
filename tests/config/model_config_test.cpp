#include "pipeinfer/config/model_config.h"

#include <nlohmann/json.hpp>

#include "test_folder.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

/// OpenLLaMA-3B v2's config.json.
json open_llama() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 3200, "initializer_range": 0.02, "intermediate_size": 8640,
    "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 26,
    "pad_token_id": 0, "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 32000})");
}

ModelConfig load(const json& config, const json& generation = nullptr) {
  const TestFolder folder;
  folder.write("config.json", config.dump());
  if (!generation.is_null()) folder.write("generation_config.json", generation.dump());
  return load_model_config(folder.path());
}

/// The refusal of open_llama() with some keys changed (null removes one).
std::string refused(const json& patch) {
  json config = open_llama();
  config.merge_patch(patch);
  return refusal([&] { load(config); });
}

ModelConfig patched(const json& patch) {
  json config = open_llama();
  config.merge_patch(patch);
  return load(config);
}

TEST(ModelConfig, ReadsOpenLlama) {
  const ModelConfig config = load(open_llama());
  EXPECT_EQ(config.hidden_size, 3200);
  EXPECT_EQ(config.intermediate_size, 8640);
  EXPECT_EQ(config.n_layers, 26);
  EXPECT_EQ(config.n_heads, 32);
  EXPECT_EQ(config.n_kv_heads, 32);
  EXPECT_EQ(config.head_dim, 100);
  EXPECT_EQ(config.vocab_size, 32000);
  EXPECT_EQ(config.context(), 2048);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope.type, RopeType::none);
  EXPECT_EQ(config.rope.theta, 10000);
  EXPECT_FALSE(config.tie_word_embeddings || config.attention_bias || config.mlp_bias);
  EXPECT_EQ(config.dtype, DType::fp16);
  EXPECT_EQ(config.bos_id, 1);
  EXPECT_EQ(config.eos_ids, std::vector<int32_t>{2});
  // The published checkpoint has 3,426,473,600 parameters.
  EXPECT_EQ(config.total_parameters(), 3426473600);
  EXPECT_EQ(config.kv_elements(), 6400);
}

TEST(ModelConfig, ShapeOfBenchIsTheCheckpoints) {
  const ModelConfig shape = model_shape("openllama-3b");
  EXPECT_EQ(shape.total_parameters(), load(open_llama()).total_parameters());
  EXPECT_EQ(shape.head_dim, 100);
  for (const std::string& name : model_shape_names())
    EXPECT_GT(model_shape(name).total_parameters(), 0) << name;
  EXPECT_EQ(
      refusal([] { model_shape("gpt"); }).find("unknown model shape gpt: expected one of openllama-3b, "),
      0u);
}

TEST(ModelConfig, StagesHoldWhatTheyRead) {
  ModelConfig config = model_shape("tiny");
  const int64_t layer = config.layer_parameters(), table = config.embedding_parameters();
  EXPECT_EQ(layer, 4 * 200 * 200 + 3 * 200 * 348 + 2 * 200);
  EXPECT_EQ(config.stage_parameters(0, 2), 2 * layer + table);
  EXPECT_EQ(config.stage_parameters(2, 4), 2 * layer);
  EXPECT_EQ(config.stage_parameters(4, 6), 2 * layer + table + 200);
  EXPECT_EQ(config.stage_parameters(0, 6), 6 * layer + 2 * table + 200);
  config.tie_word_embeddings = true;  // a copy on the last stage, none where one stage has both
  EXPECT_EQ(config.stage_parameters(4, 6), 2 * layer + table + 200);
  EXPECT_EQ(config.stage_parameters(0, 6), 6 * layer + table + 200);
  config.attention_bias = config.mlp_bias = true;
  EXPECT_EQ(config.layer_parameters(), layer + 4 * 200 + 2 * 348 + 200);
}

TEST(ModelConfig, ReadsBothSpellings) {
  const json old_spelling = {{"rope_theta", 500000}, {"rope_scaling", {{"type", "linear"}, {"factor", 2}}}};
  const json new_spelling = {
      {"torch_dtype", nullptr},
      {"dtype", "float16"},
      {"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 500000.0}}}};
  for (const json& spelling : {old_spelling, new_spelling}) {
    const ModelConfig config = patched(spelling);
    EXPECT_EQ(config.rope.type, RopeType::linear);
    EXPECT_EQ(config.rope.theta, 500000);
    EXPECT_EQ(config.rope.factor, 2);
    EXPECT_EQ(config.dtype, DType::fp16);
    EXPECT_EQ(config.context(), 4096);
  }
  EXPECT_EQ(patched({{"torch_dtype", "torch.bfloat16"}}).dtype, DType::bf16);
  EXPECT_EQ(patched({{"torch_dtype", nullptr}}).dtype, DType::fp32);
  EXPECT_EQ(patched({{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 1.5}}}}).context(), 3072);
  EXPECT_EQ(patched({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}}}}).rope.theta, 1e6);
}

TEST(ModelConfig, ReadsLlama3Scaling) {
  const json rope = {{"rope_type", "llama3"},
                     {"factor", 8},
                     {"low_freq_factor", 1},
                     {"high_freq_factor", 4},
                     {"original_max_position_embeddings", 512}};
  const ModelConfig config = patched({{"rope_scaling", rope}, {"num_key_value_heads", 8}, {"head_dim", 64}});
  EXPECT_EQ(config.rope.type, RopeType::llama3);
  EXPECT_EQ(config.rope.original_max_position, 512);
  EXPECT_EQ(config.context(), 2048) << "llama3 scaling does not stretch the context";
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.kv_size(), 512);
}

TEST(ModelConfig, EosOfBothFilesTogether) {
  json config = open_llama();
  EXPECT_EQ(load(config, {{"eos_token_id", {5, 2, 3}}}).eos_ids, (std::vector<int32_t>{2, 3, 5}));
  config["eos_token_id"] = {9, 4};
  EXPECT_EQ(load(config, {{"eos_token_id", 7}, {"do_sample", true}}).eos_ids,
            (std::vector<int32_t>{4, 7, 9}));
  config.erase("eos_token_id");
  EXPECT_EQ(load(config, {{"eos_token_id", 7}}).eos_ids, (std::vector<int32_t>{7}));
  EXPECT_EQ(load(config).eos_ids, (std::vector<int32_t>{2})) << "LlamaConfig's default";
  config["eos_token_id"] = nullptr;
  config["bos_token_id"] = nullptr;
  EXPECT_TRUE(load(config).eos_ids.empty());
  EXPECT_EQ(load(config).bos_id, -1);
}

TEST(ModelConfig, RefusesWhatIsNotImplementedByName) {
  const std::pair<json, std::string> cases[] = {
      {{{"architectures", {"MistralForCausalLM"}}}, "architectures: expected [\"LlamaForCausalLM\"], found"},
      {{{"model_type", "mistral"}}, "model_type: expected \"llama\", found \"mistral\""},
      {{{"architectures", nullptr}, {"model_type", nullptr}}, "architectures is missing"},
      {{{"hidden_act", "gelu"}}, "hidden_act: expected \"silu\", found \"gelu\""},
      {{{"sliding_window", 4096}}, "sliding_window is 4096"},
      {{{"pretraining_tp", 2}}, "pretraining_tp is 2"},
      {{{"quantization_config", {{"quant_method", "gptq"}}}},
       "quantization_config is {\"quant_method\":\"gptq\"}"},
      {{{"partial_rotary_factor", 0.5}}, "partial_rotary_factor is 0.5"},
      {{{"attn_logit_softcapping", 50.0}}, "attn_logit_softcapping is 50.0"},
      {{{"layer_types", {"full_attention", "sliding_attention"}}}, "layer_types: expected only"},
      {{{"rope_scaling", {{"type", "yarn"}, {"factor", 2}}}},
       "rope_scaling.type: expected default, linear, dynamic"},
      {{{"rope_scaling", {{"rope_type", "longrope"}}}}, "rope_scaling.rope_type: expected default"},
      {{{"rope_parameters", {{"rope_theta", 1e4}, {"partial_rotary_factor", 0.25}}}},
       "rope_parameters.partial_rotary_factor: expected 1, found 0.25"},
      {{{"rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}}},
       "rope_parameters.full_attention: expected"},
      {{{"torch_dtype", "float64"}}, "torch_dtype: expected float32, float16 or bfloat16, found \"float64\""},
  };
  for (const auto& [patch, expected] : cases) {
    const std::string message = refused(patch);
    EXPECT_NE(message.find("config.json: "), std::string::npos) << message;
    EXPECT_NE(message.find(expected), std::string::npos) << "got: " << message << "\nwanted: " << expected;
  }
}

TEST(ModelConfig, AcceptsNeutralValues) {
  EXPECT_EQ(refused({{"pretraining_tp", 1},
                     {"sliding_window", nullptr},
                     {"partial_rotary_factor", 1.0},
                     {"layer_types", {"full_attention"}},
                     {"use_qk_norm", false},
                     {"attention_dropout", 0.1},
                     {"rope_scaling", nullptr},
                     {"pruned_heads", json::object()}}),
            "");
}

TEST(ModelConfig, ChecksTypesAndRanges) {
  const std::pair<json, std::string> cases[] = {
      {{{"hidden_size", nullptr}}, "hidden_size is missing"},
      {{{"hidden_size", "3200"}}, "hidden_size: expected an integer from 1 to 16777216, found \"3200\""},
      {{{"hidden_size", 3200.5}}, "hidden_size: expected an integer"},
      {{{"hidden_size", 18446744073709551615u}}, "hidden_size: expected an integer"},
      {{{"hidden_size", 3201}}, "hidden_size: expected a multiple of num_attention_heads (32), found 3201"},
      {{{"num_hidden_layers", 0}}, "num_hidden_layers: expected an integer from 1"},
      {{{"num_key_value_heads", 5}},
       "num_key_value_heads: expected a divisor of num_attention_heads (32), found 5"},
      {{{"head_dim", 99}}, "head_dim: expected an even number, found 99"},
      {{{"vocab_size", -1}}, "vocab_size: expected"},
      {{{"rms_norm_eps", "small"}}, "rms_norm_eps: expected a number of at least 0, found \"small\""},
      {{{"tie_word_embeddings", 1}}, "tie_word_embeddings: expected true or false, found 1"},
      {{{"rope_theta", 0}}, "rope_theta: expected a number of at least 1, found 0"},
      {{{"rope_scaling", "linear"}}, "rope_scaling: expected an object, found \"linear\""},
      {{{"rope_scaling", {{"type", "linear"}}}}, "rope_scaling.factor is missing"},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 0.5}}}},
       "rope_scaling.factor: expected a number of at least 1"},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 1e30}}}},
       "max_position_embeddings: expected at most"},
      {{{"rope_scaling", {{"type", "linear"}, {"rope_type", "dynamic"}, {"factor", 2}}}},
       "rope_scaling.type: expected the same as rope_type (\"dynamic\"), found \"linear\""},
      {{{"rope_scaling",
         {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 1}}}},
       "rope_scaling.high_freq_factor: expected a number above low_freq_factor (4), found 1"},
      {{{"eos_token_id", 32000}},
       "eos_token_id: expected token ids from 0 to 31999, one or a list, found 32000"},
      {{{"eos_token_id", {2, "x"}}}, "eos_token_id: expected token ids"},
      {{{"bos_token_id", {1, 2}}}, "bos_token_id: expected one token id, found [1,2]"},
  };
  for (const auto& [patch, expected] : cases) {
    const std::string message = refused(patch);
    EXPECT_NE(message.find(expected), std::string::npos) << "got: " << message << "\nwanted: " << expected;
  }
}

TEST(ModelConfig, NamesBrokenFiles) {
  const TestFolder folder;
  const auto message = [&] { return refusal([&] { load_model_config(folder.path()); }); };
  EXPECT_NE(message().find("config.json: cannot be opened: No such file"), std::string::npos) << message();
  folder.write("config.json", "{\"hidden_size\": }");
  EXPECT_NE(message().find("config.json: broken JSON: parse error at line 1"), std::string::npos)
      << message();
  folder.write("config.json", "[1]");
  EXPECT_NE(message().find("config.json: expected a JSON object, found [1]"), std::string::npos) << message();
  folder.write("config.json", open_llama().dump());
  folder.write("generation_config.json", "{\"eos_token_id\": true}");
  EXPECT_NE(message().find("generation_config.json: eos_token_id: expected"), std::string::npos) << message();
  EXPECT_EQ(refusal([] { load_model_config("/nowhere/at/all"); }),
            "model folder /nowhere/at/all does not exist");
}

}  // namespace
}  // namespace pipeinfer

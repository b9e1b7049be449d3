#include "pipeinfer/config/model_config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "json_file.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {
namespace {

using nlohmann::json;

constexpr int32_t kLargest = 1 << 24;  ///< of any dimension: products of two stay far inside int64

/// Keys that change what a model computes, and the value with which they don't; null stands for false, 0 and
/// empty. They are other families' settings: a config.json that calls itself Llama but has one is not what we
/// implement.
struct Neutral {
  const char* key;
  json value;
};

const std::vector<Neutral>& number_changing() {
  static const std::vector<Neutral> kKeys = {
      {"pretraining_tp", 1},
      {"partial_rotary_factor", 1.0},
      {"rotary_pct", 1.0},
      {"quantization_config", nullptr},
      {"sliding_window", nullptr},
      {"use_sliding_window", nullptr},
      {"attention_chunk_size", nullptr},
      {"attn_logit_softcapping", nullptr},
      {"final_logit_softcapping", nullptr},
      {"query_pre_attn_scalar", nullptr},
      {"attention_multiplier", nullptr},
      {"embedding_multiplier", 1.0},
      {"residual_multiplier", 1.0},
      {"logits_scaling", 1.0},
      {"logit_scale", 1.0},
      {"scale_emb", 1},
      {"scale_depth", nullptr},
      {"dim_model_base", nullptr},
      {"clip_qkv", nullptr},
      {"qk_norm", nullptr},
      {"use_qk_norm", nullptr},
      {"qk_layernorm", nullptr},
      {"bias", nullptr},
      {"use_bias", nullptr},
      {"qkv_bias", nullptr},
      {"alibi", nullptr},
      {"rope_interleave", nullptr},
      {"use_parallel_residual", nullptr},
      {"parallel_attn", nullptr},
      {"no_rope_layers", nullptr},
      {"num_experts", nullptr},
      {"num_local_experts", nullptr},
      {"n_routed_experts", nullptr},
      {"kv_lora_rank", nullptr},
      {"pruned_heads", nullptr},
      {"add_cross_attention", nullptr},
      {"is_encoder_decoder", nullptr},
  };
  return kKeys;
}

void refuse_what_changes_numbers(const JsonObject& file) {
  if (!file.has("architectures") && !file.has("model_type")) file.missing("architectures");
  if (file.has("architectures") && file.at("architectures") != json::array({"LlamaForCausalLM"}))
    file.wrong("architectures", "[\"LlamaForCausalLM\"]");
  if (file.has("model_type") && file.at("model_type") != "llama") file.wrong("model_type", "\"llama\"");
  if (file.has("hidden_act") && file.at("hidden_act") != "silu" && file.at("hidden_act") != "swish")
    file.wrong("hidden_act", "\"silu\"");
  if (file.has("layer_types")) {
    const json& types = file.at("layer_types");
    const bool plain = types.is_array() && std::all_of(types.begin(), types.end(), [](const json& type) {
                         return type == "full_attention";
                       });
    if (!plain) file.wrong("layer_types", "only \"full_attention\"");
  }
  for (const auto& [key, value] : number_changing()) {
    const json& found = file.at(key);
    const bool off = found == json(false) || found == json(0) || (found.is_structured() && found.empty());
    if (found.is_null() || found == value || (value.is_null() && off)) continue;
    usage_error(cat(file.path(), ": ", key, " is ", shown(found),
                    ", which changes what the model computes and is not implemented"));
  }
}

RopeType rope_type(const JsonObject& rope) {
  const std::string type = rope.text_or("rope_type", rope.text_or("type", "default"));
  if (rope.has("type") && rope.text_or("type", "") != type)
    rope.wrong("type", cat("the same as rope_type (\"", type, "\")"));
  for (const RopeType known : {RopeType::none, RopeType::linear, RopeType::dynamic, RopeType::llama3})
    if (type == rope_type_name(known)) return known;
  rope.wrong(rope.has("rope_type") ? "rope_type" : "type", "default, linear, dynamic or llama3");
}

/// `rope_scaling` (with rope_theta beside it) or `rope_parameters` (with rope_theta inside).
RopeConfig read_rope(const JsonObject& file, int32_t max_position, int32_t head_dim) {
  RopeConfig config;
  config.theta = file.number_or("rope_theta", config.theta, 1);
  const bool old_spelling = file.has("rope_scaling");
  if (old_spelling && file.has("rope_parameters") && file.at("rope_scaling") != file.at("rope_parameters"))
    file.wrong("rope_parameters", "nothing beside rope_scaling, or the same");
  if (!old_spelling && !file.has("rope_parameters")) return config;

  const JsonObject rope = file.object(old_spelling ? "rope_scaling" : "rope_parameters");
  for (const auto& [key, value] : rope.value().items())
    if (value.is_object()) rope.wrong(key, "one setting for all layers");
  config.theta = rope.number_or("rope_theta", config.theta, 1);
  if (rope.number_or("partial_rotary_factor", 1, 0) != 1) rope.wrong("partial_rotary_factor", "1");
  config.type = rope_type(rope);
  if (config.type == RopeType::none) return config;

  config.factor = rope.number("factor", 1);
  if (config.type == RopeType::dynamic && head_dim < 4)  // the exponent is d / (d - 2)
    rope.wrong("rope_type", cat("no dynamic scaling for head_dim ", head_dim));
  if (config.type == RopeType::llama3) {
    config.low_freq_factor = rope.number("low_freq_factor", 0);
    config.high_freq_factor = rope.number("high_freq_factor", 0);
    if (config.low_freq_factor <= 0) rope.wrong("low_freq_factor", "a number above 0");
    if (config.high_freq_factor <= config.low_freq_factor)
      rope.wrong("high_freq_factor", cat("a number above low_freq_factor (", config.low_freq_factor, ")"));
    const int32_t inside = rope.integer_or("original_max_position_embeddings", max_position, 1, kLargest);
    config.original_max_position = file.integer_or("original_max_position_embeddings", inside, 1, kLargest);
  }
  return config;
}

DType read_dtype(const JsonObject& file) {
  const char* key = file.has("dtype") ? "dtype" : "torch_dtype";
  std::string name = file.text_or(key, "float32");
  if (name.starts_with("torch.")) name = name.substr(6);
  if (name == "float32") return DType::fp32;
  if (name == "float16") return DType::fp16;
  if (name == "bfloat16") return DType::bf16;
  file.wrong(key, "float32, float16 or bfloat16");
}

/// Token ids of a key that holds a number or a list of numbers.
std::vector<int32_t> token_ids(const JsonObject& file, const char* key, int32_t vocab_size) {
  const json& value = file.at(key);
  if (value.is_null()) return {};
  std::vector<int32_t> ids;
  for (const json& id : value.is_array() ? value : json::array({value})) {
    if (!id.is_number_integer() || id < 0 || id >= vocab_size)
      file.wrong(key, cat("token ids from 0 to ", vocab_size - 1, ", one or a list"));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

/// LlamaConfig's defaults (BOS 1, EOS 2) hold where no file has the key; null means none.
void read_special_tokens(const std::vector<JsonObject>& files, ModelConfig& config) {
  bool bos_named = false, eos_named = false;
  for (const JsonObject& file : files) {
    if (file.value().contains("bos_token_id") && !bos_named) {
      bos_named = true;
      const std::vector<int32_t> ids = token_ids(file, "bos_token_id", config.vocab_size);
      if (ids.size() > 1) file.wrong("bos_token_id", "one token id");
      config.bos_id = ids.empty() ? -1 : ids.front();
    }
    eos_named = eos_named || file.value().contains("eos_token_id");
    const std::vector<int32_t> ids = token_ids(file, "eos_token_id", config.vocab_size);
    config.eos_ids.insert(config.eos_ids.end(), ids.begin(), ids.end());
  }
  if (!eos_named && config.vocab_size > 2) config.eos_ids = {2};
  if (!bos_named && config.vocab_size <= 1) config.bos_id = -1;
  std::sort(config.eos_ids.begin(), config.eos_ids.end());
  config.eos_ids.erase(std::unique(config.eos_ids.begin(), config.eos_ids.end()), config.eos_ids.end());
}

}  // namespace

ModelConfig load_model_config(const std::string& folder) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(folder)) usage_error(cat("model folder ", folder, " does not exist"));
  std::vector<JsonObject> files = {JsonObject::read((fs::path(folder) / "config.json").string())};
  const fs::path generation = fs::path(folder) / "generation_config.json";
  if (fs::exists(generation)) files.push_back(JsonObject::read(generation.string()));
  const JsonObject& file = files.front();
  refuse_what_changes_numbers(file);

  ModelConfig config;
  config.hidden_size = file.integer("hidden_size", 1, kLargest);
  config.intermediate_size = file.integer("intermediate_size", 1, kLargest);
  config.n_layers = file.integer("num_hidden_layers", 1, 100000);
  config.n_heads = file.integer("num_attention_heads", 1, 65536);
  config.n_kv_heads = file.integer_or("num_key_value_heads", config.n_heads, 1, config.n_heads);
  config.vocab_size = file.integer("vocab_size", 1, kLargest);
  config.max_position_embeddings = file.integer("max_position_embeddings", 1, kLargest);
  config.rms_norm_eps = file.number_or("rms_norm_eps", config.rms_norm_eps, 0);
  config.tie_word_embeddings = file.boolean_or("tie_word_embeddings", false);
  config.attention_bias = file.boolean_or("attention_bias", false);
  config.mlp_bias = file.boolean_or("mlp_bias", false);
  config.dtype = read_dtype(file);

  if (config.n_heads % config.n_kv_heads != 0)
    file.wrong("num_key_value_heads", cat("a divisor of num_attention_heads (", config.n_heads, ")"));
  if (!file.has("head_dim") && config.hidden_size % config.n_heads != 0)
    file.wrong("hidden_size", cat("a multiple of num_attention_heads (", config.n_heads, ")"));
  config.head_dim = file.integer_or("head_dim", config.hidden_size / config.n_heads, 1, 65536);
  if (config.head_dim % 2 != 0)
    usage_error(cat(file.path(), ": head_dim: expected an even number, found ", config.head_dim));
  if (static_cast<int64_t>(config.n_heads) * config.head_dim > kLargest)
    file.wrong("num_attention_heads", cat("at most ", kLargest, " elements in all heads"));

  config.rope = read_rope(file, config.max_position_embeddings, config.head_dim);
  const bool stretched = config.rope.type == RopeType::linear || config.rope.type == RopeType::dynamic;
  if (stretched && config.max_position_embeddings * config.rope.factor > kLargest)
    file.wrong("max_position_embeddings", cat("at most ", kLargest, " positions after rope scaling"));
  read_special_tokens(files, config);
  return config;
}

}  // namespace pipeinfer

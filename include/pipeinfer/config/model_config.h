// What config.json and generation_config.json say of a LlamaForCausalLM checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeinfer/base/types.h"

namespace pipeinfer {

/// How rotary frequencies are scaled. `none` is what config.json calls "default".
enum class RopeType : uint8_t { none, linear, dynamic, llama3 };

/// "default", "linear", "dynamic" or "llama3".
const char* rope_type_name(RopeType type);

struct RopeConfig {
  RopeType type = RopeType::none;
  double theta = 10000;
  double factor = 1;                  ///< linear, dynamic, llama3; >= 1
  double low_freq_factor = 1;         ///< llama3
  double high_freq_factor = 4;        ///< llama3; above low_freq_factor
  int32_t original_max_position = 0;  ///< llama3: the context it was pretrained with
};

/// Weight shapes are [out, in]: q [n_heads * head_dim, hidden], k and v [n_kv_heads * head_dim, hidden], o
/// [hidden, n_heads * head_dim], gate and up [intermediate, hidden], down [hidden, intermediate]; embedding
/// and head [vocab, hidden].
struct ModelConfig {
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t n_layers = 0;
  int32_t n_heads = 0;
  int32_t n_kv_heads = 0;  ///< divides n_heads
  int32_t head_dim = 0;    ///< even; hidden_size / n_heads unless given
  int32_t vocab_size = 0;
  int32_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool tie_word_embeddings = false;
  bool attention_bias = false;   ///< on q, k, v and o
  bool mlp_bias = false;         ///< on gate, up and down
  DType dtype = DType::fp32;     ///< torch_dtype or dtype; fp32 where neither is there
  int32_t bos_id = 1;            ///< -1: none
  std::vector<int32_t> eos_ids;  ///< of both files, ascending, each once; empty: none

  /// Most tokens of a sequence: max_position_embeddings, times the factor for linear and dynamic scaling.
  int32_t context() const;

  int32_t q_size() const { return n_heads * head_dim; }
  int32_t kv_size() const { return n_kv_heads * head_dim; }

  int64_t layer_parameters() const;      ///< of one decoder layer, its two norms and its biases included
  int64_t embedding_parameters() const;  ///< vocab x hidden
  int64_t head_parameters() const;       ///< vocab x hidden, tied or not: what the last stage reads in a step
  int64_t norm_parameters() const { return hidden_size; }  ///< the final norm

  /// What a stage of layers [first, last) holds: stage 0 also the embedding, the last one also the final norm
  /// and the head (a tied head is the embedding where one stage holds both, and a copy of it otherwise).
  int64_t stage_parameters(int first, int last) const;
  int64_t total_parameters() const { return stage_parameters(0, n_layers); }

  /// Elements of K and V that one token keeps in one layer.
  int64_t kv_elements() const { return 2ll * n_kv_heads * head_dim; }
};

/// Reads `folder`/config.json and, where it is there, generation_config.json, in both spellings (rope_scaling
/// with `type` or `rope_type`, rope_theta, torch_dtype; rope_parameters, dtype). Throws Error(usage) that
/// names file and key for what is missing, of a wrong type or range, or would change the numbers and is not
/// implemented.
ModelConfig load_model_config(const std::string& folder);

/// The shape that `bench --shape` makes up: "openllama-3b", ... Throws Error(usage) that lists the names.
ModelConfig model_shape(const std::string& name);
std::vector<std::string> model_shape_names();

/// Rotary frequencies [head_dim / 2], rounded to fp32 step by step as transformers' modeling_rope_utils does:
/// theta^(-2i / head_dim) (Su et al. 2021, arXiv:2104.09864), scaled for linear (Chen et al. 2023,
/// arXiv:2306.15595) and llama3 (Grattafiori et al. 2024, arXiv:2407.21783). Dynamic NTK depends on the
/// length: here it is unscaled.
std::vector<float> inv_freq(const ModelConfig& config);

}  // namespace pipeinfer

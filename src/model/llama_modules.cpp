#include "llama_modules.h"

#include <ATen/ops/from_blob.h>

#include <charconv>
#include <cmath>

#include "aten_cpu.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/model/llama_stage.h"
#include "scalar_type.h"

namespace pipeinfer {

namespace model {

at::Tensor ParameterMaker::make(const std::vector<int64_t>& shape) {
  size_t bytes = dtype_size(dtype_);
  for (int64_t size : shape) bytes *= size;
  const at::Device device = device_.is_cuda() ? at::Device(at::kCUDA, device_.index) : at::Device(at::kCPU);
  const auto options = at::TensorOptions().dtype(scalar_type(dtype_)).device(device);
  return at::from_blob(
      arena_.take(bytes), shape, [](void*) {}, options, device);
}

void ParameterMaker::map(const at::Tensor& parameter, int64_t first, int64_t rows, const std::string& name) {
  std::vector<int64_t> shape = parameter.sizes().vec();
  const size_t row_bytes = parameter.nbytes() / shape[0];
  shape[0] = rows;
  char* data = static_cast<char*>(parameter.data_ptr());  // null where the arena only counts
  slices_.push_back({name, shape, data ? data + first * row_bytes : nullptr});
}

Linear::Linear(ParameterMaker& maker, const std::vector<Part>& parts, int64_t n_in, bool bias) {
  int64_t n_out = 0;
  for (const Part& part : parts) n_out += part.rows;
  weight_ = register_parameter("weight", maker.make({n_out, n_in}), false);
  if (bias) bias_ = register_parameter("bias", maker.make({n_out}), false);
  int64_t first = 0;
  for (const Part& part : parts) {
    maker.map(weight_, first, part.rows, part.name + ".weight");
    if (bias) maker.map(bias_, first, part.rows, part.name + ".bias");
    first += part.rows;
  }
}

Linear::Linear(const at::Tensor& weight) : weight_(register_parameter("weight", weight, false)) {}

void Linear::forward(void* out, const void* x, int n_rows, kernels::Epilogue epilogue,
                     const Pass& pass) const {
  const void* bias = bias_.defined() ? bias_.data_ptr() : nullptr;
  const int n_out = weight_.size(0), n_in = weight_.size(1);
  if (pass.stream.device().is_cuda())
    kernels::linear_cuda(out, x, weight_.data_ptr(), bias, n_rows, n_out, n_in, pass.dtype, epilogue,
                         pass.stream);
  else
    linear_cpu(out, x, weight_.data_ptr(), bias, n_rows, n_out, n_in, pass.dtype, epilogue);
}

kernels::FusedLinear Linear::fused(const void* x, int n_rows) const {
  return {.x = x,
          .weight = weight_.data_ptr(),
          .bias = bias_.defined() ? bias_.data_ptr() : nullptr,
          .n_rows = n_rows,
          .n_out = static_cast<int>(weight_.size(0)),
          .n_in = static_cast<int>(weight_.size(1))};
}

Embedding::Embedding(ParameterMaker& maker, const std::string& name, int64_t vocab, int64_t hidden)
    : weight_(register_parameter("weight", maker.make({vocab, hidden}), false)) {
  maker.map(weight_, 0, vocab, name + ".weight");
}

void Embedding::forward(const Pass& pass, const int32_t* token, const int32_t* last_token) const {
  kernels::embed(pass.x, weight_.data_ptr(), token, pass.tokens.slot, last_token, pass.tokens.n_tokens,
                 weight_.size(1), pass.dtype, pass.stream);
}

RmsNorm::RmsNorm(ParameterMaker& maker, const std::string& name, int64_t hidden, double eps)
    : eps_(static_cast<float>(eps)), weight_(register_parameter("weight", maker.make({hidden}), false)) {
  maker.map(weight_, 0, hidden, name + ".weight");
}

void RmsNorm::forward(const Pass& pass, const int32_t* row, int n_rows) const {
  kernels::rms_norm(pass.space.normed, pass.x, weight_.data_ptr(), row, n_rows, weight_.size(0), eps_,
                    pass.dtype, pass.stream);
}

kernels::SplitNorm RmsNorm::split(const Pass& pass) const {
  return {.weight = weight_.data_ptr(),
          .eps = eps_,
          .scaled = pass.space.normed,
          .squares = pass.space.squares,
          .parts = kernels::norm_parts(static_cast<int>(weight_.size(0)), pass.tokens.n_tokens, pass.dtype,
                                       pass.stream.device())};
}

Attention::Attention(ParameterMaker& maker, const std::string& name, const ModelConfig& config)
    : n_heads_(config.n_heads), scale_(1 / std::sqrt(static_cast<float>(config.head_dim))) {
  const std::vector<Linear::Part> qkv = {{name + ".q_proj", config.q_size()},
                                         {name + ".k_proj", config.kv_size()},
                                         {name + ".v_proj", config.kv_size()}};
  const std::vector<Linear::Part> o = {{name + ".o_proj", config.hidden_size}};
  qkv_proj_ = register_module(
      "qkv_proj", std::make_shared<Linear>(maker, qkv, config.hidden_size, config.attention_bias));
  o_proj_ =
      register_module("o_proj", std::make_shared<Linear>(maker, o, config.q_size(), config.attention_bias));
}

void Attention::forward(const Pass& pass, const kernels::KvLayer& cache) const {
  const Workspace& space = pass.space;
  const int n = pass.tokens.n_tokens;
  qkv_proj_->forward(space.qkv, space.normed, n, kernels::Epilogue::store, pass);
  attend(pass, cache);
  o_proj_->forward(pass.x, space.attended, n, kernels::Epilogue::add, pass);
}

void Attention::forward_fused(const Pass& pass, const kernels::SplitNorm& norm,
                              const kernels::SplitNorm& next, const kernels::KvLayer& cache) const {
  const Workspace& space = pass.space;
  const int n = pass.tokens.n_tokens;
  kernels::FusedLinear qkv = qkv_proj_->fused(norm.scaled, n);
  qkv.out = space.qkv;
  qkv.norm = norm;
  kernels::fused_linear(qkv, pass.dtype, pass.stream);
  attend(pass, cache);
  kernels::FusedLinear o = o_proj_->fused(space.attended, n);
  o.out = pass.x;
  o.next = next;
  o.epilogue = kernels::Epilogue::add;
  kernels::fused_linear(o, pass.dtype, pass.stream);
}

void Attention::attend(const Pass& pass, const kernels::KvLayer& cache) const {
  const Workspace& space = pass.space;
  kernels::decode_attention(space.attended, space.qkv, cache, pass.tokens, n_heads_, scale_, space.decode,
                            pass.dtype, pass.stream);
  const int n_single = pass.tokens.n_single;
  if (n_single == pass.tokens.n_tokens) return;
  kernels::TokenTable rest = pass.tokens;
  rest.slot += n_single;
  rest.position += n_single;
  rest.angle += int64_t{n_single} * cache.head_dim;
  rest.n_tokens -= n_single;
  rest.n_single = 0;
  const size_t head_bytes = cache.head_dim * dtype_size(pass.dtype);
  void* qkv = static_cast<char*>(space.qkv) + n_single * (n_heads_ + 2 * cache.n_kv_heads) * head_bytes;
  void* attended = static_cast<char*>(space.attended) + n_single * n_heads_ * head_bytes;
  kernels::rope_and_cache(qkv, cache, rest, n_heads_, pass.dtype, pass.stream);
  kernels::paged_attention(attended, qkv, cache, rest, n_heads_, scale_, pass.dtype, pass.stream);
}

Mlp::Mlp(ParameterMaker& maker, const std::string& name, const ModelConfig& config)
    : intermediate_(config.intermediate_size) {
  const std::vector<Linear::Part> gate_up = {{name + ".gate_proj", intermediate_},
                                             {name + ".up_proj", intermediate_}};
  const std::vector<Linear::Part> down = {{name + ".down_proj", config.hidden_size}};
  gate_up_proj_ = register_module(
      "gate_up_proj", std::make_shared<Linear>(maker, gate_up, config.hidden_size, config.mlp_bias));
  down_proj_ =
      register_module("down_proj", std::make_shared<Linear>(maker, down, intermediate_, config.mlp_bias));
}

void Mlp::forward(const Pass& pass) const {
  const Workspace& space = pass.space;
  const int n = pass.tokens.n_tokens;
  gate_up_proj_->forward(space.gate_up, space.normed, n, kernels::Epilogue::store, pass);
  kernels::silu_mul(space.mlp, space.gate_up, n, intermediate_, pass.dtype, pass.stream);
  down_proj_->forward(pass.x, space.mlp, n, kernels::Epilogue::add, pass);
}

void Mlp::forward_fused(const Pass& pass, const kernels::SplitNorm& norm,
                        const kernels::SplitNorm& next) const {
  const Workspace& space = pass.space;
  const int n = pass.tokens.n_tokens;
  kernels::FusedLinear gate_up = gate_up_proj_->fused(norm.scaled, n);
  gate_up.out = space.mlp;
  gate_up.epilogue = kernels::Epilogue::silu_mul;
  gate_up.norm = norm;
  kernels::fused_linear(gate_up, pass.dtype, pass.stream);
  kernels::FusedLinear down = down_proj_->fused(space.mlp, n);
  down.out = pass.x;
  down.next = next;
  down.epilogue = kernels::Epilogue::add;
  kernels::fused_linear(down, pass.dtype, pass.stream);
}

DecoderLayer::DecoderLayer(ParameterMaker& maker, const std::string& name, const ModelConfig& config) {
  const auto norm = [&](const char* which) {
    return register_module(which, std::make_shared<RmsNorm>(maker, cat(name, ".", which), config.hidden_size,
                                                            config.rms_norm_eps));
  };
  input_layernorm_ = norm("input_layernorm");
  self_attn_ = register_module("self_attn", std::make_shared<Attention>(maker, name + ".self_attn", config));
  post_attention_layernorm_ = norm("post_attention_layernorm");
  mlp_ = register_module("mlp", std::make_shared<Mlp>(maker, name + ".mlp", config));
}

void DecoderLayer::forward(const Pass& pass, const kernels::KvLayer& cache) const {
  input_layernorm_->forward(pass, nullptr, pass.tokens.n_tokens);
  self_attn_->forward(pass, cache);
  post_attention_layernorm_->forward(pass, nullptr, pass.tokens.n_tokens);
  mlp_->forward(pass);
}

void DecoderLayer::forward_fused(const Pass& pass, const RmsNorm* next, const kernels::KvLayer& cache) const {
  const kernels::SplitNorm between = post_attention_layernorm_->split(pass);
  self_attn_->forward_fused(pass, input_layernorm_->split(pass), between, cache);
  mlp_->forward_fused(pass, between, next ? next->split(pass) : kernels::SplitNorm{});
}

LlamaModel::LlamaModel(ParameterMaker& maker, const ModelConfig& config, const StageOptions& options)
    : hidden_(config.hidden_size) {
  const std::string embedding = "model.embed_tokens";
  if (options.first_layer == 0)
    embed_tokens_ = register_module(
        "embed_tokens", std::make_shared<Embedding>(maker, embedding, config.vocab_size, hidden_));
  const auto layers = register_module("layers", std::make_shared<torch::nn::Module>("layers"));
  for (int i = options.first_layer; i < options.last_layer; ++i)
    layers_.push_back(layers->register_module(
        std::to_string(i), std::make_shared<DecoderLayer>(maker, cat("model.layers.", i), config)));
  if (options.last_layer < config.n_layers) return;

  norm_ =
      register_module("norm", std::make_shared<RmsNorm>(maker, "model.norm", hidden_, config.rms_norm_eps));
  const std::vector<Linear::Part> head = {
      {config.tie_word_embeddings ? embedding : "lm_head", config.vocab_size}};
  lm_head_ = register_module("lm_head", config.tie_word_embeddings && embed_tokens_
                                            ? std::make_shared<Linear>(embed_tokens_->weight())
                                            : std::make_shared<Linear>(maker, head, hidden_, false));
}

void LlamaModel::embed(const Pass& pass, const int32_t* token, const int32_t* last_token) const {
  embed_tokens_->forward(pass, token, last_token);
}

void LlamaModel::forward(const Pass& pass, const KvCache& cache) const {
  if (pass.fused) {
    kernels::split_norm(pass.x, layers_[0]->input_layernorm().split(pass), pass.tokens.n_tokens,
                        static_cast<int>(hidden_), pass.dtype, pass.stream);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const RmsNorm* next = i + 1 < layers_.size() ? &layers_[i + 1]->input_layernorm() : norm_.get();
      layers_[i]->forward_fused(pass, next, cache.layer(i));
    }
    return;
  }
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i]->forward(pass, cache.layer(i));
}

void LlamaModel::head(float* logits, const Pass& pass, const int32_t* row, int n_rows) const {
  if (pass.fused) {
    kernels::FusedLinear head = lm_head_->fused(pass.space.normed, n_rows);
    head.out = logits;
    head.row = row;
    head.epilogue = kernels::Epilogue::store_fp32;
    head.norm = norm_->split(pass);
    return kernels::fused_linear(head, pass.dtype, pass.stream);
  }
  norm_->forward(pass, row, n_rows);
  lm_head_->forward(logits, pass.space.normed, n_rows, kernels::Epilogue::store_fp32, pass);
}

int fused_tokens(const ModelConfig& config, const StageOptions& options, Device device) {
  int most = options.reference_kernels ? 0 : kernels::kFusedRows;
  for (int64_t n_in : {config.hidden_size, config.q_size(), config.intermediate_size})
    most = std::min(most, kernels::fused_rows(static_cast<int>(n_in), options.dtype, device));
  return most;
}

StageModules::StageModules(const ModelConfig& config, const StageOptions& options, Arena& arena,
                           Device device) {
  ParameterMaker maker(arena, device, options.dtype);
  model_ = std::make_shared<LlamaModel>(maker, config, options);
  slices_ = maker.slices();
}

StageModules::~StageModules() = default;

void StageModules::embed(const Pass& pass, const int32_t* token, const int32_t* last_token) const {
  model_->embed(pass, token, last_token);
}

void StageModules::forward(const Pass& pass, const KvCache& cache) const { model_->forward(pass, cache); }

void StageModules::head(float* logits, const Pass& pass, const int32_t* row, int n_rows) const {
  model_->head(logits, pass, row, n_rows);
}

}  // namespace model

int64_t weight_bytes(const ModelConfig& config, const StageOptions& options) {
  model::Arena count;
  model::StageModules(config, options, count, Device{});
  return count.used();
}

void check_weights(const ModelConfig& config, const Checkpoint& checkpoint) {
  StageOptions all_layers;
  all_layers.last_layer = config.n_layers;
  model::Arena count;
  const model::StageModules modules(config, all_layers, count, Device{});
  for (const model::WeightSlice& slice : modules.slices()) checkpoint.require(slice.name, slice.shape);
  // A deeper model cut short would run, and write nonsense.
  const std::string prefix = "model.layers.";
  for (const std::string& name : checkpoint.names()) {
    int64_t layer = -1;
    if (name.starts_with(prefix))
      std::from_chars(name.data() + prefix.size(), name.data() + name.size(), layer);
    if (layer >= config.n_layers)
      usage_error(cat("the checkpoint ", checkpoint.folder(), " holds tensor ", name,
                      ", but its config.json says num_hidden_layers ", config.n_layers));
  }
}

}  // namespace pipeinfer

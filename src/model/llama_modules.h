// The modules of a stage. Each owns its parameters, packed as they are multiplied, and knows which tensors of the
// checkpoint fill them. `forward` only enqueues: kernels on a GPU, loops and ATen on the CPU.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "stage_modules.h"

namespace pipeinfer::model {

/// Gives parameters their memory, and lists what of the checkpoint fills it.
class ParameterMaker {
 public:
  ParameterMaker(Arena& arena, Device device, DType dtype) : arena_(arena), device_(device), dtype_(dtype) {}

  /// A view of uninitialised memory of the arena.
  at::Tensor make(const std::vector<int64_t>& shape);
  /// Rows [first, first + rows) of a parameter are the checkpoint's tensor `name`.
  void map(const at::Tensor& parameter, int64_t first, int64_t rows, const std::string& name);
  const std::vector<WeightSlice>& slices() const { return slices_; }

 private:
  Arena& arena_;
  Device device_;
  DType dtype_;
  std::vector<WeightSlice> slices_;
};

/// How a linear keeps its weight.
enum class WeightFormat : uint8_t { dense };  // weight [n_out, n_in] in the stage's dtype, no scales

/// out = x * weight^T + bias. One or more linears of the checkpoint with the same input, one below the other.
class Linear : public torch::nn::Module {
 public:
  struct Part {
    std::string name;  // in the checkpoint, without ".weight"
    int64_t rows;
  };
  Linear(ParameterMaker& maker, const std::vector<Part>& parts, int64_t n_in, bool bias);
  /// Shares a weight that another module owns (tied embeddings).
  explicit Linear(const at::Tensor& weight);

  /// The product as a fused kernel's; out is left to the caller, and so is what happens around it.
  kernels::FusedLinear fused(const void* x, int n_rows) const;

  /// x [n_rows, n_in] -> out [n_rows, n_out]; `epilogue` is any but silu_mul.
  void forward(void* out, const void* x, int n_rows, kernels::Epilogue epilogue, const Pass& pass) const;

 private:
  WeightFormat format_ = WeightFormat::dense;
  at::Tensor weight_;
  at::Tensor scales_;  // undefined in dense
  at::Tensor bias_;    // [n_out], or undefined
};

/// A row a token, from a table.
class Embedding : public torch::nn::Module {
 public:
  Embedding(ParameterMaker& maker, const std::string& name, int64_t vocab, int64_t hidden);
  const at::Tensor& weight() const { return weight_; }

  /// pass.x = rows of `token` [n_tokens], or of the slots' last tokens where it is kFromSlot.
  void forward(const Pass& pass, const int32_t* token, const int32_t* last_token) const;

 private:
  at::Tensor weight_;  // [vocab, hidden]
};

/// Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467).
class RmsNorm : public torch::nn::Module {
 public:
  RmsNorm(ParameterMaker& maker, const std::string& name, int64_t hidden, double eps);

  /// The norm as it goes between fused products, of which at most one is under way at a time.
  kernels::SplitNorm split(const Pass& pass) const;

  /// pass.x, or the rows of it that `row` [n_rows] picks, -> space.normed; see kernels::rms_norm.
  void forward(const Pass& pass, const int32_t* row, int n_rows) const;

 private:
  float eps_;
  at::Tensor weight_;  // [hidden]
};

class Attention : public torch::nn::Module {
 public:
  Attention(ParameterMaker& maker, const std::string& name, const ModelConfig& config);
  /// pass.x += attention(space.normed)
  void forward(const Pass& pass, const kernels::KvLayer& cache) const;
  /// pass.x += attention(norm(pass.x))
  void forward_fused(const Pass& pass, const kernels::SplitNorm& norm, const kernels::SplitNorm& next,
                     const kernels::KvLayer& cache) const;

 private:
  /// space.qkv -> space.attended
  void attend(const Pass& pass, const kernels::KvLayer& cache) const;

  int n_heads_;
  float scale_;
  std::shared_ptr<Linear> qkv_proj_;  // [q + 2 kv, hidden]
  std::shared_ptr<Linear> o_proj_;    // [hidden, q]
};

/// down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202).
class Mlp : public torch::nn::Module {
 public:
  Mlp(ParameterMaker& maker, const std::string& name, const ModelConfig& config);
  /// pass.x += mlp(space.normed)
  void forward(const Pass& pass) const;
  /// pass.x += mlp(norm(pass.x))
  void forward_fused(const Pass& pass, const kernels::SplitNorm& norm, const kernels::SplitNorm& next) const;

 private:
  int intermediate_;
  std::shared_ptr<Linear> gate_up_proj_;  // [2 intermediate, hidden]
  std::shared_ptr<Linear> down_proj_;     // [hidden, intermediate]
};

class DecoderLayer : public torch::nn::Module {
 public:
  DecoderLayer(ParameterMaker& maker, const std::string& name, const ModelConfig& config);
  /// pass.x -> pass.x
  void forward(const Pass& pass, const kernels::KvLayer& cache) const;
  /// The same in fused kernels; `next` is the norm of what comes after it, null for none.
  void forward_fused(const Pass& pass, const RmsNorm* next, const kernels::KvLayer& cache) const;
  const RmsNorm& input_layernorm() const { return *input_layernorm_; }

 private:
  std::shared_ptr<RmsNorm> input_layernorm_, post_attention_layernorm_;
  std::shared_ptr<Attention> self_attn_;
  std::shared_ptr<Mlp> mlp_;
};

/// The part of LlamaForCausalLM that a stage owns.
class LlamaModel : public torch::nn::Module {
 public:
  LlamaModel(ParameterMaker& maker, const ModelConfig& config, const StageOptions& options);

  // See StageModules.
  void embed(const Pass& pass, const int32_t* token, const int32_t* last_token) const;
  void forward(const Pass& pass, const KvCache& cache) const;
  void head(float* logits, const Pass& pass, const int32_t* row, int n_rows) const;

 private:
  int hidden_;
  std::shared_ptr<Embedding> embed_tokens_;  // null but on the first stage
  std::vector<std::shared_ptr<DecoderLayer>> layers_;
  std::shared_ptr<RmsNorm> norm_;    // null but on the last stage
  std::shared_ptr<Linear> lm_head_;  // [vocab, hidden]; null but on the last stage
};

}  // namespace pipeinfer::model

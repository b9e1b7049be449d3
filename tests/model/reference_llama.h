// LlamaForCausalLM in double precision by plain loops, written from the papers and not from src/model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "pipeinfer/config/model_config.h"

namespace pipeinfer::test {

/// A model whose weights live in the test.
struct TestModel {
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  ModelConfig config;
  std::map<std::string, Tensor> tensors;  ///< by their names in a checkpoint
};

/// Random weights that `dtype` represents exactly.
TestModel make_model(const ModelConfig& config, DType dtype, uint64_t seed);

/// Writes model.safetensors (fp32) into a folder.
void write_checkpoint(const TestModel& model, const std::string& folder);

/// Logits [tokens, vocab] of a sequence whose first `prompt_tokens` tokens are the prompt (dynamic NTK asks).
std::vector<std::vector<double>> reference_logits(const TestModel& model, const std::vector<int32_t>& tokens,
                                                  int prompt_tokens);

}  // namespace pipeinfer::test

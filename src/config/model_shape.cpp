// Sizes, frequencies and made-up shapes: what follows from a ModelConfig without any file.
#include <cmath>
#include <numbers>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/config/model_config.h"

namespace pipeinfer {
namespace {

struct Shape {
  const char* name;
  int32_t hidden, intermediate, layers, heads, kv_heads, vocab, context;
  double theta;
  DType dtype;
};

/// Published dimensions; head_dim is hidden / heads for all.
constexpr Shape kShapes[] = {
    {"openllama-3b", 3200, 8640, 26, 32, 32, 32000, 2048, 10000, DType::fp16},
    {"openllama-7b", 4096, 11008, 32, 32, 32, 32000, 2048, 10000, DType::fp16},
    {"tinyllama-1.1b", 2048, 5632, 22, 32, 4, 32000, 2048, 10000, DType::bf16},
    {"tiny", 200, 348, 6, 2, 2, 2000, 160, 10000, DType::fp32},
};

}  // namespace

const char* rope_type_name(RopeType type) {
  switch (type) {
    case RopeType::linear:
      return "linear";
    case RopeType::dynamic:
      return "dynamic";
    case RopeType::llama3:
      return "llama3";
    case RopeType::none:
      break;
  }
  return "default";
}

int32_t ModelConfig::context() const {
  if (rope.type != RopeType::linear && rope.type != RopeType::dynamic) return max_position_embeddings;
  return static_cast<int32_t>(std::floor(max_position_embeddings * rope.factor));
}

int64_t ModelConfig::layer_parameters() const {
  const int64_t hidden = hidden_size, inner = intermediate_size, q = q_size(), kv = kv_size();
  int64_t count = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner + 2 * hidden;
  if (attention_bias) count += q + 2 * kv + hidden;
  if (mlp_bias) count += 2 * inner + hidden;
  return count;
}

int64_t ModelConfig::embedding_parameters() const { return static_cast<int64_t>(vocab_size) * hidden_size; }

int64_t ModelConfig::head_parameters() const { return embedding_parameters(); }

int64_t ModelConfig::stage_parameters(int first, int last) const {
  int64_t count = (last - first) * layer_parameters();
  const bool embeds = first == 0, has_head = last == n_layers;
  if (embeds) count += embedding_parameters();
  if (has_head) count += norm_parameters();
  if (has_head && !(embeds && tie_word_embeddings)) count += head_parameters();
  return count;
}

std::vector<std::string> model_shape_names() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.push_back(shape.name);
  return names;
}

ModelConfig model_shape(const std::string& name) {
  std::string known;
  for (const Shape& shape : kShapes) {
    known += cat(known.empty() ? "" : ", ", shape.name);
    if (name != shape.name) continue;
    ModelConfig config;
    config.hidden_size = shape.hidden;
    config.intermediate_size = shape.intermediate;
    config.n_layers = shape.layers;
    config.n_heads = shape.heads;
    config.n_kv_heads = shape.kv_heads;
    config.head_dim = shape.hidden / shape.heads;
    config.vocab_size = shape.vocab;
    config.max_position_embeddings = shape.context;
    config.rope.theta = shape.theta;
    config.dtype = shape.dtype;
    config.eos_ids = {2};
    return config;
  }
  usage_error(cat("unknown model shape ", name, ": expected one of ", known));
}

std::vector<float> inv_freq(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  const float factor = static_cast<float>(rope.factor);
  // Each operation below is one fp32 tensor operation there; the scalars between them are Python's doubles.
  const double low_wavelength = rope.original_max_position / rope.low_freq_factor;
  const double high_wavelength = rope.original_max_position / rope.high_freq_factor;
  const float band = static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);

  std::vector<float> frequencies(config.head_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    const double base = static_cast<float>(rope.theta);
    float frequency = 1.0f / static_cast<float>(std::pow(base, static_cast<double>(exponent)));
    if (rope.type == RopeType::linear) frequency /= factor;
    if (rope.type == RopeType::llama3) {
      const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
      if (wavelength > static_cast<float>(low_wavelength)) {
        frequency /= factor;
      } else if (wavelength >= static_cast<float>(high_wavelength)) {
        const float original = static_cast<float>(rope.original_max_position);
        const float smooth = (original / wavelength - static_cast<float>(rope.low_freq_factor)) / band;
        frequency = (1 - smooth) * frequency / factor + smooth * frequency;
      }
    }
    frequencies[i] = frequency;
  }
  return frequencies;
}

}  // namespace pipeinfer

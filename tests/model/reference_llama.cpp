#include "reference_llama.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "pipeinfer/checkpoint/convert.h"

namespace pipeinfer::test {

namespace {

using Vector = std::vector<double>;

float rounded(float value, DType dtype) {
  if (dtype == DType::fp16) return half_to_float(float_to_half(value));
  if (dtype == DType::bf16) return bfloat_to_float(float_to_bfloat(value));
  return value;
}

const std::vector<float>& weights(const TestModel& model, const std::string& name) {
  return model.tensors.at(name).values;
}

Vector linear(const TestModel& model, const std::string& name, const Vector& x) {
  const auto& w = weights(model, name + ".weight");
  Vector out(w.size() / x.size(), 0.0);
  for (size_t o = 0; o < out.size(); ++o)
    for (size_t i = 0; i < x.size(); ++i) out[o] += w[o * x.size() + i] * x[i];
  if (model.tensors.count(name + ".bias"))
    for (size_t o = 0; o < out.size(); ++o) out[o] += weights(model, name + ".bias")[o];
  return out;
}

Vector norm(const TestModel& model, const std::string& name, const Vector& x) {
  double square = 0;
  for (double value : x) square += value * value;
  const double scale = 1 / std::sqrt(square / x.size() + model.config.rms_norm_eps);
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weights(model, name + ".weight")[i];
  return out;
}

// Angle per position of pair i of head_dim / 2.
double frequency(const ModelConfig& config, int i, int position, int prompt_tokens) {
  const RopeConfig& rope = config.rope;
  const double d = config.head_dim;
  const auto plain = [&](double theta) { return std::pow(theta, -2.0 * i / d); };
  switch (rope.type) {
    case RopeType::none:
      return plain(rope.theta);
    case RopeType::linear:
      return plain(rope.theta) / rope.factor;
    case RopeType::dynamic: {
      const double original = config.max_position_embeddings;
      const double length = std::max({static_cast<double>(prompt_tokens), position + 1.0, original});
      return plain(rope.theta * std::pow(rope.factor * length / original - (rope.factor - 1), d / (d - 2)));
    }
    case RopeType::llama3: {
      // Wavelengths above original / low are stretched, those below original / high are kept, linear between.
      const double wavelength = 2 * M_PI / plain(rope.theta);
      const double turns = rope.original_max_position / wavelength;
      const double keep = std::clamp(
          (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
      return plain(rope.theta) * (keep + (1 - keep) / rope.factor);
    }
  }
  return 0;
}

void rotate(const ModelConfig& config, double* head, int position, int prompt_tokens) {
  const int half = config.head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const double angle = position * frequency(config, i, position, prompt_tokens);
    const double a = head[i], b = head[i + half];
    head[i] = a * std::cos(angle) - b * std::sin(angle);
    head[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

// Causal attention of all positions; `normed` [tokens][hidden].
std::vector<Vector> attention(const TestModel& model, const std::string& name,
                              const std::vector<Vector>& normed, int prompt_tokens) {
  const ModelConfig& config = model.config;
  const int d = config.head_dim, group = config.n_heads / config.n_kv_heads;
  std::vector<Vector> keys, values, out;
  for (size_t t = 0; t < normed.size(); ++t) {
    Vector q = linear(model, name + ".q_proj", normed[t]);
    keys.push_back(linear(model, name + ".k_proj", normed[t]));
    values.push_back(linear(model, name + ".v_proj", normed[t]));
    for (int h = 0; h < config.n_heads; ++h) rotate(config, &q[h * d], t, prompt_tokens);
    for (int h = 0; h < config.n_kv_heads; ++h) rotate(config, &keys[t][h * d], t, prompt_tokens);
    Vector mixed(config.q_size(), 0.0);
    for (int h = 0; h < config.n_heads; ++h) {
      const int at = h / group * d;
      Vector score(t + 1, 0.0);
      for (size_t s = 0; s <= t; ++s) {
        for (int i = 0; i < d; ++i) score[s] += q[h * d + i] * keys[s][at + i];
        score[s] /= std::sqrt(static_cast<double>(d));
      }
      const double max = *std::max_element(score.begin(), score.end());
      double total = 0;
      for (double& value : score) total += value = std::exp(value - max);
      for (size_t s = 0; s <= t; ++s)
        for (int i = 0; i < d; ++i) mixed[h * d + i] += score[s] / total * values[s][at + i];
    }
    out.push_back(linear(model, name + ".o_proj", mixed));
  }
  return out;
}

Vector mlp(const TestModel& model, const std::string& name, const Vector& x) {
  Vector gate = linear(model, name + ".gate_proj", x);
  const Vector up = linear(model, name + ".up_proj", x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return linear(model, name + ".down_proj", gate);
}

void add(Vector& x, const Vector& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

}  // namespace

TestModel make_model(const ModelConfig& config, DType dtype, uint64_t seed) {
  TestModel model{config, {}};
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  const auto tensor = [&](const std::string& name, std::vector<int64_t> shape, float mean, float spread) {
    int64_t n = 1;
    for (int64_t size : shape) n *= size;
    std::vector<float> values(n);
    for (float& value : values) value = rounded(mean + spread * uniform(engine), dtype);
    model.tensors[name] = {std::move(shape), std::move(values)};
  };
  const auto linear = [&](const std::string& name, int64_t n_out, int64_t n_in, bool bias) {
    tensor(name + ".weight", {n_out, n_in}, 0, 2 / std::sqrt(static_cast<float>(n_in)));
    if (bias) tensor(name + ".bias", {n_out}, 0, 0.5f);
  };
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  tensor("model.embed_tokens.weight", {config.vocab_size, hidden}, 0, 1);
  for (int i = 0; i < config.n_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i);
    tensor(layer + ".input_layernorm.weight", {hidden}, 1, 0.3f);
    tensor(layer + ".post_attention_layernorm.weight", {hidden}, 1, 0.3f);
    linear(layer + ".self_attn.q_proj", config.q_size(), hidden, config.attention_bias);
    linear(layer + ".self_attn.k_proj", config.kv_size(), hidden, config.attention_bias);
    linear(layer + ".self_attn.v_proj", config.kv_size(), hidden, config.attention_bias);
    linear(layer + ".self_attn.o_proj", hidden, config.q_size(), config.attention_bias);
    linear(layer + ".mlp.gate_proj", inner, hidden, config.mlp_bias);
    linear(layer + ".mlp.up_proj", inner, hidden, config.mlp_bias);
    linear(layer + ".mlp.down_proj", hidden, inner, config.mlp_bias);
  }
  tensor("model.norm.weight", {hidden}, 1, 0.3f);
  if (!config.tie_word_embeddings) linear("lm_head", config.vocab_size, hidden, false);
  return model;
}

void write_checkpoint(const TestModel& model, const std::string& folder) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : model.tensors) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size() * sizeof(float));
    header[name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::ofstream file(folder + "/model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << text << data;
}

std::vector<std::vector<double>> reference_logits(const TestModel& model, const std::vector<int32_t>& tokens,
                                                  int prompt_tokens) {
  const ModelConfig& config = model.config;
  const auto& embedding = weights(model, "model.embed_tokens.weight");
  std::vector<Vector> x;
  for (int32_t token : tokens) {
    const auto row = embedding.begin() + int64_t{token} * config.hidden_size;
    x.emplace_back(row, row + config.hidden_size);
  }
  for (int i = 0; i < config.n_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i);
    std::vector<Vector> normed;
    for (const Vector& row : x) normed.push_back(norm(model, layer + ".input_layernorm", row));
    const std::vector<Vector> attended = attention(model, layer + ".self_attn", normed, prompt_tokens);
    for (size_t t = 0; t < x.size(); ++t) {
      add(x[t], attended[t]);
      add(x[t], mlp(model, layer + ".mlp", norm(model, layer + ".post_attention_layernorm", x[t])));
    }
  }
  std::vector<Vector> logits;
  for (const Vector& row : x) {
    const Vector last = norm(model, "model.norm", row);
    Vector out(config.vocab_size, 0.0);
    const auto& head = config.tie_word_embeddings ? embedding : weights(model, "lm_head.weight");
    for (int v = 0; v < config.vocab_size; ++v)
      for (size_t i = 0; i < last.size(); ++i) out[v] += head[v * last.size() + i] * last[i];
    logits.push_back(std::move(out));
  }
  return logits;
}

}  // namespace pipeinfer::test

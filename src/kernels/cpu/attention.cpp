// Rotary embedding into the paged cache, and attention over it. Every token is computed on its own, in the same order
// of additions whatever else is in the step: so results do not depend on batch or chunk, to the last bit.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../ops.h"
#include "../rope_math.h"
#include "element.h"

namespace pipeinfer::kernels::cpu {
namespace {

/// K of `head` in `block`; V is `block_size * n_kv_heads` rows further on.
template <typename T>
T* head_block(const KvLayer& cache, int block, int head) {
  const int64_t head_elements = int64_t{cache.block_size} * cache.head_dim;
  return static_cast<T*>(cache.data) + (int64_t{block} * 2 * cache.n_kv_heads + head) * head_elements;
}
int64_t v_offset(const KvLayer& cache) {
  return int64_t{cache.n_kv_heads} * cache.block_size * cache.head_dim;
}

/// to = from rotated by the angles [half, 2]; to may be from.
template <typename T>
void rotate(T* to, const T* from, const float* angle, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = to_float(from[i]), b = to_float(from[i + half]);
    const float cosine = angle[2 * i], sine = angle[2 * i + 1];
    to[i] = from_float<T>(a * cosine - b * sine);
    to[i + half] = from_float<T>(b * cosine + a * sine);
  }
}

template <typename T>
void rope_and_cache_token(T* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads, int t) {
  const int d = cache.head_dim, half = d / 2;
  const int slot = tokens.slot[t], position = tokens.position[t];
  const float* angle = tokens.angle + int64_t{t} * d;
  T* q = qkv + int64_t{t} * (n_heads + 2 * cache.n_kv_heads) * d;
  const T* k = q + n_heads * d;
  const T* v = k + cache.n_kv_heads * d;
  for (int h = 0; h < n_heads; ++h) rotate(q + h * d, q + h * d, angle, half);
  const int block = tokens.block_table[int64_t{slot} * tokens.max_blocks + position / cache.block_size];
  for (int h = 0; h < cache.n_kv_heads; ++h) {
    T* to = head_block<T>(cache, block, h) + position % cache.block_size * d;
    rotate(to, k + h * d, angle, half);
    std::copy_n(v + h * d, d, to + v_offset(cache));
  }
}

template <typename T>
float dot(const float* a, const T* b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += a[i] * to_float(b[i]);
  return sum;
}

/// One query head of one token over positions [0, context). `p` has room for `context` scores.
template <typename T>
void attend(T* out, const T* q, const KvLayer& cache, const int32_t* blocks, int context, int kv_head,
            float scale, float* p) {
  const int d = cache.head_dim, size = cache.block_size;
  float query[kMaxHeadDim], sum[kMaxHeadDim] = {};
  for (int i = 0; i < d; ++i) query[i] = to_float(q[i]) * scale;
  float max = -INFINITY;
  for (int begin = 0; begin < context; begin += size) {
    const T* k = head_block<T>(cache, blocks[begin / size], kv_head);
    for (int j = begin; j < std::min(begin + size, context); ++j, k += d) {
      p[j] = dot(query, k, d);
      max = std::max(max, p[j]);
    }
  }
  float total = 0;
  for (int j = 0; j < context; ++j) total += p[j] = std::exp(p[j] - max);
  for (int begin = 0; begin < context; begin += size) {
    const T* v = head_block<T>(cache, blocks[begin / size], kv_head) + v_offset(cache);
    for (int j = begin; j < std::min(begin + size, context); ++j, v += d) {
      for (int i = 0; i < d; ++i) sum[i] += p[j] * to_float(v[i]);
    }
  }
  for (int i = 0; i < d; ++i) out[i] = from_float<T>(sum[i] / total);
}

}  // namespace

void prepare_attention(float* angle, void*, const KvLayer& cache, const TokenTable& tokens, const Rope& rope,
                       int, Stream&) {
  const int d = cache.head_dim;
  for (int t = 0; t < tokens.n_tokens; ++t) {
    const int position = tokens.position[t];
    const double base =
        rope.dynamic ? dynamic_ntk_base(rope, tokens.prompt_tokens[tokens.slot[t]], position, d) : 0;
    for (int i = 0; i < d / 2; ++i, angle += 2) {
      const float frequency = rope.dynamic ? rope_frequency(base, i, d) : rope.inv_freq[i];
      const float x = static_cast<float>(position) * frequency;
      angle[0] = std::cos(x);
      angle[1] = std::sin(x);
    }
  }
}

void rope_and_cache(void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads, DType dtype,
                    Stream&) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for (int t = 0; t < tokens.n_tokens; ++t)
      rope_and_cache_token(static_cast<T*>(qkv), cache, tokens, n_heads, t);
  });
}

void paged_attention(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                     float scale, DType dtype, Stream&) {
  const int d = cache.head_dim, group = n_heads / cache.n_kv_heads;
  const int most = *std::max_element(tokens.position, tokens.position + tokens.n_tokens);
  std::vector<float> scores(most + 1);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t t = 0; t < tokens.n_tokens; ++t) {
      const T* q = static_cast<const T*>(qkv) + t * (n_heads + 2 * cache.n_kv_heads) * d;
      T* to = static_cast<T*>(out) + t * n_heads * d;
      const int32_t* blocks = tokens.block_table + int64_t{tokens.slot[t]} * tokens.max_blocks;
      for (int h = 0; h < n_heads; ++h)
        attend(to + h * d, q + h * d, cache, blocks, tokens.position[t] + 1, h / group, scale, scores.data());
    }
  });
}

void decode_attention(void* out, void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                      float scale, void*, DType dtype, Stream& stream) {
  TokenTable single = tokens;
  single.n_tokens = tokens.n_single;
  cpu::rope_and_cache(qkv, cache, single, n_heads, dtype, stream);
  cpu::paged_attention(out, qkv, cache, single, n_heads, scale, dtype, stream);
}

size_t decode_workspace_bytes(int, int, int, Device) { return 0; }

}  // namespace pipeinfer::kernels::cpu

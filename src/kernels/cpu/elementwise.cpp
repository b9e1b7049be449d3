// Embedding, norm and activation.
#include <cmath>
#include <cstring>

#include "../ops.h"
#include "element.h"

namespace pipeinfer::kernels::cpu {
namespace {

template <typename T>
void rms_norm_row(T* out, const T* x, const T* weight, int hidden, float eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < hidden; ++i) sum += to_float(x[i]) * to_float(x[i]);
  const float scale = 1 / std::sqrt(sum / static_cast<float>(hidden) + eps);
  for (int i = 0; i < hidden; ++i) out[i] = from_float<T>(to_float(x[i]) * scale * to_float(weight[i]));
}

}  // namespace

void embed(void* out, const void* table, const int32_t* token, const int32_t* slot, const int32_t* last_token,
           int n_tokens, int hidden, DType dtype, Stream&) {
  const size_t row_bytes = hidden * dtype_size(dtype);
  for (int t = 0; t < n_tokens; ++t) {
    const size_t id = token[t] >= 0 ? token[t] : last_token[slot[t]];
    std::memcpy(static_cast<char*>(out) + t * row_bytes, static_cast<const char*>(table) + id * row_bytes,
                row_bytes);
  }
}

void rms_norm(void* out, const void* x, const void* weight, const int32_t* row, int n_rows, int hidden,
              float eps, DType dtype, Stream&) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t i = 0; i < n_rows; ++i) {
      const int64_t from = row ? row[i] : i;
      rms_norm_row(static_cast<T*>(out) + i * hidden, static_cast<const T*>(x) + from * hidden,
                   static_cast<const T*>(weight), hidden, eps);
    }
  });
}

void upload_tables(void* to, const void* from, size_t bytes, Stream&) { std::memcpy(to, from, bytes); }

void silu_mul(void* out, const void* gate_up, int n_tokens, int intermediate, DType dtype, Stream&) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t t = 0; t < n_tokens; ++t) {
      const T* gate = static_cast<const T*>(gate_up) + t * 2 * intermediate;
      const T* up = gate + intermediate;
      T* to = static_cast<T*>(out) + t * intermediate;
      for (int i = 0; i < intermediate; ++i) {
        const float x = to_float(gate[i]);
        to[i] = from_float<T>(x / (1 + std::exp(-x)) * to_float(up[i]));
      }
    }
  });
}

}  // namespace pipeinfer::kernels::cpu

// What the two kinds of fused products share: see SplitNorm in kernels.h.
#pragma once

#include "common.cuh"

namespace pipeinfer::kernels::cuda {

/// Calls f with a value of the element type, one of 16 bits.
template <typename F>
auto with_16_bits(DType dtype, F&& f) {
  return dtype == DType::fp16 ? f(__half{}) : f(__nv_bfloat16{});
}

/// x * norm weight. Half precision ends at 65504: the product may be beyond where the normalised one is not.
template <typename T>
__device__ inline T scaled(float x, float weight) {
  const float y = x * weight;
  return from_float<T>(std::is_same_v<T, __half> ? fminf(fmaxf(y, -65504.0f), 65504.0f) : y);
}

/// The sum over neighbouring threads, `n` of them, a power of 2, known to all of them.
__device__ inline float neighbours_sum(float value, int n) {
  for (int i = n / 2; i > 0; i /= 2) value += __shfl_xor_sync(~0u, value, i);
  return value;
}

}  // namespace pipeinfer::kernels::cuda

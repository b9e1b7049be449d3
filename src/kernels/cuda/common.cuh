// What the CUDA kernels share: element types, wide loads and stores, reductions, launch checks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "pipeinfer/base/types.h"
#include "pipeinfer/device/cuda_check.h"
#include "pipeinfer/device/device.h"

namespace pipeinfer::kernels::cuda {

inline cudaStream_t native(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

/// After a launch: throws what the driver refused.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

/// Calls f with a value of the element type.
template <typename F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::fp32:
      return f(float{});
    case DType::fp16:
      return f(__half{});
    case DType::bf16:
      return f(__nv_bfloat16{});
  }
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

/// Two neighbours of 16 bits as one register, what tensor cores take.
template <typename T>
__device__ inline uint32_t pack(float low, float high) {
  const auto both = [&] {
    if constexpr (std::is_same_v<T, __half>) {
      return __floats2half2_rn(low, high);
    } else {
      return __floats2bfloat162_rn(low, high);
    }
  }();
  uint32_t word;
  memcpy(&word, &both, sizeof word);
  return word;
}

/// The type that one load or store instruction moves.
template <int bytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

/// N elements from an address that is a multiple of their size.
template <int N, typename T>
__device__ inline void load(float (&to)[N], const T* from) {
  using W = typename Word<N * sizeof(T)>::type;
  const W word = *reinterpret_cast<const W*>(from);
  T elements[N];
  memcpy(elements, &word, sizeof word);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(elements[i]);
}

template <int N, typename T>
__device__ inline void store(T* to, const float (&from)[N]) {
  using W = typename Word<N * sizeof(T)>::type;
  T elements[N];
#pragma unroll
  for (int i = 0; i < N; ++i) elements[i] = from_float<T>(from[i]);
  W word;
  memcpy(&word, elements, sizeof word);
  *reinterpret_cast<W*>(to) = word;
}

template <typename... P>
bool aligned(size_t bytes, const P*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % bytes == 0) && ...);
}

/// Where a ring's next slot is: its number, and the parity of the phase in which it is filled.
struct Turn {
  int slot = 0, parity = 0;
  __device__ void next(int stages) {
    if (++slot < stages) return;
    slot = 0;
    parity ^= 1;
  }
};

struct Sum {
  template <typename V>
  __device__ V operator()(V a, V b) const {
    return a + b;
  }
};
struct Max {
  template <typename V>
  __device__ V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

/// The reduction over all threads of the block, known to all of them. `scratch` is shared memory for 32 values; every
/// thread takes part, and blocks are whole warps. V{} is neutral.
template <typename V, typename Op>
__device__ inline V block_reduce(V value, V* scratch, Op op) {
  for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(~0u, value, offset));
  const int lane = threadIdx.x % 32;
  __syncthreads();  // an earlier use of the scratch is over
  if (lane == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = lane < static_cast<int>(blockDim.x / 32) ? scratch[lane] : V{};
  for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

}  // namespace pipeinfer::kernels::cuda

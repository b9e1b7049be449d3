// What CUDA adds to C++, as far as src/kernels/cuda uses it.
#pragma once

#include <math.h>
#include <string.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
// __shared__ and kernel<<<>>> are left to translate.py.

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

using std::max;
using std::min;

inline void __syncthreads() { emulator::sync_block(); }
inline void __syncwarp() { emulator::sync_warp("__syncwarp"); }
inline void __threadfence() {}

template <typename V>
V __shfl_sync(unsigned, V value, int source) {
  return emulator::shuffle(value, source, "__shfl_sync");
}
template <typename V>
V __shfl_xor_sync(unsigned, V value, int mask) {
  return emulator::shuffle(value, threadIdx.x % 32 ^ mask, "__shfl_xor_sync");
}
template <typename V>
V __shfl_up_sync(unsigned, V value, unsigned delta) {
  const unsigned lane = threadIdx.x % 32;
  return emulator::shuffle(value, lane < delta ? lane : lane - delta, "__shfl_up_sync");
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  const auto& shown = emulator::show({predicate ? 1.0f : 0.0f}, "__ballot_sync");
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= (shown[lane][0] != 0 ? 1u : 0u) << lane;
  return bits;
}

inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }

// Threads change places only where they wait for each other: everything between is atomic.
template <typename T>
T atomicAdd(T* data, std::type_identity_t<T> value) {
  return std::exchange(*data, *data + value);
}
template <typename T>
T atomicOr(T* data, std::type_identity_t<T> value) {
  return std::exchange(*data, *data | value);
}

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __ldcg(const float* data) { return *data; }
inline float rsqrtf(float value) { return 1 / sqrtf(value); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(bits) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }

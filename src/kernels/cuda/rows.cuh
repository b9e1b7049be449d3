// What the attention kernels on tensor cores share: how the cache's rows lie in shared memory.
#pragma once

#include "mma.cuh"

namespace pipeinfer::kernels::cuda {

/// This thread's lane, computed anew: addresses made of it are not kept in registers from tile to tile.
__device__ inline int lane_again() {
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));
  return lane;
}

/// An octet of the KV cache (see KvLayer) as it lies in shared memory too: whole groups of 8 dims, each [8, 8] elements,
/// then the rest [8, kTail].
template <int D>
struct Octet {
  static constexpr int kBytes = 8 * D * 2;
  static constexpr int kGroups = D / 8, kGroupBytes = 128;
  static constexpr int kTail = D % 8, kTailAt = kGroups * kGroupBytes;  // bytes
  static_assert(kTail == 0 || kTail == 4);

  /// In elements; dim and the next one are neighbours where dim is even.
  __device__ static int offset(int position, int dim) {
    return dim / 8 * 64 + position % 8 * (dim / 8 < kGroups ? 8 : kTail) + dim % 8;
  }
};

/// Where a tile lies is a multiple of 128 bytes, as it is in the cache: so each line that a copy takes is one request to
/// the L2 cache and not two, which would be more than it can take while the memory is busy.
struct alignas(128) Line {
  char bytes[128];
};

/// Calls f with the head dimension as a type, where it is one that these kernels are made for.
template <typename F>
void with_head_dim(int head_dim, F&& f) {
  const auto pick = [&]<int... D>(std::integer_sequence<int, D...>) {
    ((head_dim == D ? f(std::integral_constant<int, D>{}) : void()), ...);
  };
  pick(std::integer_sequence<int, 64, 80, 96, 100, 104, 128>{});
}

}  // namespace pipeinfer::kernels::cuda

// What the attention kernels on tensor cores share: rows of D elements in shared memory.
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

/// How rows of D elements lie in shared memory: padded with zeros to whole groups of 8, at a stride of an odd number of
/// 16-byte units, so that the eight rows of a matrix load fall into different banks.
template <int D>
struct Rows {
  static constexpr int kGroups = (D + 7) / 8;
  static constexpr int kStride = (kGroups | 1) * 16;   // bytes
  static constexpr int kVector = D % 8 == 0 ? 16 : 8;  // bytes of a copy: rows begin at its multiples
  static constexpr int kVectors = D * 2 / kVector;     // a row
  static constexpr int kAtOnce = 32 / kVectors;        // rows that a warp copies by one instruction
  static_assert(kVectors <= 32 && D % 4 == 0);

  /// A warp, of which this is thread `lane`, copies 8 rows; those from `n` on become zeros.
  __device__ static void fetch(int lane, char* to, const char* from, int64_t pitch, int n) {
    const int first = lane / kVectors, column = lane % kVectors * kVector;
    if (first >= kAtOnce) return;
    to += first * kStride + column;
    from += first * pitch + column;
    n -= first;
#pragma unroll
    for (int row = 0; row < 8; row += kAtOnce) {
      if (row + first < 8) copy_to_shared<kVector>(to + row * kStride, from + row * pitch, row < n);
    }
  }
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

// What a block of prefill attention works on: its tokens and their runs, the tiles of keys and values it walks over, and
// how these lie in shared memory.
#pragma once

#include "kv.cuh"
#include "rows.cuh"

namespace pipeinfer::kernels::cuda::prefill {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = kWarps * 32;
inline constexpr int kQueries = kWarps * 16;
inline constexpr int kKeys = 64;

/// Bytes of shared memory: queries, K and V.
template <int D>
inline constexpr int kShared = (kQueries + 2 * kKeys) * Rows<D>::kStride;

/// The tokens of a block: their positions, and where runs begin.
struct Tokens {
  int position[kQueries];
  unsigned starts[kQueries / 32];  // bit i % 32 of word i / 32: token i begins a run
  int count;

  __device__ void read(const TokenTable& tokens, int64_t t0) {
    if (threadIdx.x >= kQueries) return;
    const int i = threadIdx.x, n = static_cast<int>(min(int64_t{kQueries}, tokens.n_tokens - t0));
    const int64_t t = t0 + i;
    const bool start = i < n && (i == 0 || tokens.slot[t] != tokens.slot[t - 1] ||
                                 tokens.position[t] != tokens.position[t - 1] + 1);
    const unsigned bits = __ballot_sync(~0u, start);
    if (i % 32 == 0) starts[i / 32] = bits;
    position[i] = i < n ? tokens.position[t] : -1;
    if (i == 0) count = n;
  }
  __device__ int end_of_run(int begin) const {
    for (int i = begin + 1; i < count; i = (i / 32 + 1) * 32) {
      const unsigned later = starts[i / 32] >> (i % 32);
      if (later) return i + __ffs(static_cast<int>(later)) - 1;
    }
    return count;
  }
};
static_assert(kQueries <= kThreads);

/// A tile of keys: positions [first, first + kKeys) for the run of tokens [begin, end), which sees `keys` of them all.
struct KeyTile {
  int begin, end, keys, first;
  const int32_t* blocks;

  __device__ void enter_run(const Tokens& own, const TokenTable& tokens, int64_t t0) {
    begin = end;
    if (begin >= own.count) return;
    end = own.end_of_run(begin);
    keys = own.position[end - 1] + 1;
    first = 0;
    blocks = blocks_of(tokens, tokens.slot[t0 + begin]);
  }
  __device__ bool has(int row) const { return begin <= row && row < end; }
  __device__ void next(const Tokens& own, const TokenTable& tokens, int64_t t0) {
    first += kKeys;
    if (first >= keys) enter_run(own, tokens, t0);
  }

  /// Starts the copy of K (offset 0) or V: 8 positions a warp, which are in one block.
  template <typename T, int D>
  __device__ void fetch(char* to, const KvLayer& cache, int kv_head, int64_t offset) const {
    static_assert(kKeys == kWarps * 8);
    const int row = threadIdx.x / 32 * 8, n = keys - first - row;
    const T* octet = n > 0 ? key_octet<T>(cache, blocks, first + row, kv_head) + offset : nullptr;
    const char* from = reinterpret_cast<const char*>(octet);
    for (int i = lane_again(); i < Rows<D>::kGroups * 8; i += 32) {
      const int r = i % 8, group = i / 8;
      char* into = to + (row + r) * Rows<D>::kStride + group * 16;
      if (group < Octet<D>::kGroups)
        copy_to_shared<16>(into, from + group * Octet<D>::kGroupBytes + r * 16, r < n);
      else
        copy_to_shared<8>(into, from + Octet<D>::kTailAt + r * 8, r < n);
    }
    commit_copies();
  }
};

}  // namespace pipeinfer::kernels::cuda::prefill

// What a block of prefill attention works on: its tokens and their runs; the tiles of keys and values it walks over, which
// lie in shared memory as octets of positions, as in the cache (kv.cuh); and what its warps hold of their queries.
#pragma once

#include <cfloat>

#include "kv.cuh"
#include "rows.cuh"

namespace pipeinfer::kernels::cuda::prefill {

inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * 32;
inline constexpr int kKeys = 64;  // positions of a tile
inline constexpr int kStep = 32;  // positions whose scores a warp holds at a time
/// Weights are 2^(score - base), where a row's base follows its largest score only when that is further ahead than this:
/// sums are then rarely rescaled, and weights stay far from the largest half (65504).
inline constexpr float kSlack = 8;

/// Sizes that depend on the head dimension. A warp takes kStrips times 16 queries: two if its registers hold their sums,
/// since every operand it then reads from shared memory serves twice.
template <int D>
struct Shape {
  static constexpr int kStrips = D <= 104 ? 2 : 1;
  static constexpr int kRows = kStrips * 16;  // queries of a warp
  static constexpr int kQueries = kWarps * kRows;
  static constexpr int kGroups = (D + 7) / 8;  // of columns, the last one of 4 where D % 8 == 4
  static constexpr int kSteps = (D + 15) / 16;
  static constexpr int kTile = kKeys / kOctet * Octet<D>::kBytes;  // bytes of a tile's K or V
  static constexpr int kShared = 2 * 2 * kTile;                    // two tiles of K and V
};

/// The tokens of a block: their positions, and where runs begin.
template <int kQueries>
struct Tokens {
  int first, count;
  int position[kQueries];
  unsigned starts[kQueries / 32];  // bit i % 32 of word i / 32: token i begins a run

  __device__ void read(const TokenTable& tokens, int t0) {
    static_assert(kQueries <= kThreads);
    if (threadIdx.x >= kQueries) return;
    const int i = threadIdx.x, n = min(kQueries, tokens.n_tokens - t0);
    const int t = t0 + i;
    const bool start = i < n && (i == 0 || tokens.slot[t] != tokens.slot[t - 1] ||
                                 tokens.position[t] != tokens.position[t - 1] + 1);
    const unsigned bits = __ballot_sync(~0u, start);
    if (i % 32 == 0) starts[i / 32] = bits;
    if (i < n) position[i] = tokens.position[t];
    if (i == 0) {
      first = t0;
      count = n;
    }
  }
  __device__ int end_of_run(int begin) const {
    for (int i = begin + 1; i < count; i = (i / 32 + 1) * 32) {
      const unsigned later = starts[i / 32] >> (i % 32);
      if (later) return i + __ffs(static_cast<int>(later)) - 1;
    }
    return count;
  }
};

/// A tile of keys: positions [first, first + kKeys) for the run of tokens [begin, end), which sees `keys` of them all.
struct KeyTile {
  int begin, end, keys, first;
  int shift;  // token i sees the tile's keys up to i + shift
  int slot;

  template <int kQueries>
  __device__ void enter_run(const Tokens<kQueries>& own, const TokenTable& tokens) {
    begin = end;
    if (begin >= own.count) return;
    end = own.end_of_run(begin);
    shift = own.position[begin] - begin;
    keys = end + shift;
    first = 0;
    slot = tokens.slot[own.first + begin];
  }
  template <int kQueries>
  __device__ void next(const Tokens<kQueries>& own, const TokenTable& tokens) {
    first += kKeys;
    shift -= kKeys;
    if (first >= keys) enter_run(own, tokens);
  }
  __device__ bool has(int token) const { return begin <= token && token < end; }

  /// Starts the copy of K and V, half a warp an octet. Positions that the run does not see become zeros in V (a weight
  /// of 0 would not protect from what is there).
  template <typename T, int D>
  __device__ void fetch(char* to, const TokenTable& tokens, const KvLayer& cache, int kv_head) const {
    static_assert(kKeys / kOctet == kThreads / 16);
    const int octet = threadIdx.x / 16, part = threadIdx.x % 16, position = first + octet * kOctet;
    const int n = keys - position;
    const char* from = static_cast<const char*>(cache.data);
    if (n > 0)
      from = reinterpret_cast<const char*>(key_octet<T>(cache, blocks_of(tokens, slot), position, kv_head));
    const int64_t to_values = v_offset(cache) * sizeof(T);
    to += octet * Octet<D>::kBytes;
#pragma unroll
    for (int i = part; i < Octet<D>::kBytes / 16; i += 16) {  // words of one position, or a tail's of two
      constexpr int kWhole = Octet<D>::kTailAt / 16;
      const int seen = i < kWhole ? (n > part % 8 ? 16 : 0) : min(max(n - (i - kWhole) * 2, 0) * 8, 16);
      copy_part_to_shared(to + i * 16, from + i * 16, n > 0 ? 16 : 0);
      copy_part_to_shared(to + Shape<D>::kTile + i * 16, from + to_values + i * 16, seen);
    }
    commit_copies();
  }
};

/// What a lane holds of 16 queries: operands and sums as mma_16x8x16 has them, rows lane / 4 and lane / 4 + 8.
template <typename T, int D>
struct Strip {
  uint32_t query[Shape<D>::kSteps][4];
  float sum[Shape<D>::kGroups][4] = {};
  float base[2] = {-FLT_MAX, -FLT_MAX}, total[2] = {};  // total: of this lane's keys

  /// From rows at `pitch` elements; those from `n` on become zeros.
  __device__ void load(const T* from, int64_t pitch, int n) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e % 2 * 8, column = i * 16 + e / 2 * 8 + lane % 4 * 2;
        query[i][e] =
            row < n && column < D ? *reinterpret_cast<const uint32_t*>(from + row * pitch + column) : 0;
      }
    }
  }

  /// Row r's base becomes the largest of itself and what the row's lanes give, and its sums follow.
  __device__ void move_base(int r, float largest) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    largest = fmaxf(largest, base[r]);
    const float factor = exp2_approximate(base[r] - largest);
    base[r] = largest;
    total[r] *= factor;
#pragma unroll
    for (int i = 0; i < Shape<D>::kGroups; ++i) {
      sum[i][r * 2] *= factor;
      sum[i][r * 2 + 1] *= factor;
    }
  }

  /// sum / total of row r, to D elements.
  __device__ void store_row(int r, T* to) const {
    const int lane = threadIdx.x % 32;
    float all = total[r];
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    const float factor = __fdividef(1, all);
#pragma unroll
    for (int i = 0; i < Shape<D>::kGroups; ++i) {
      const int column = i * 8 + lane % 4 * 2;
      const float both[2] = {sum[i][r * 2] * factor, sum[i][r * 2 + 1] * factor};
      if (to && column < D) store(to + column, both);
    }
  }
};

/// Scores become weights, the operands of the next product, and are added to the totals: of `kSteps` times 16 positions.
template <int kStrips, int kSteps, typename T, int D>
__device__ inline void weigh(uint32_t (&weight)[kStrips][kSteps][4], Strip<T, D> (&strip)[kStrips],
                             const float (&score)[kStrips][2 * kSteps][4], float scale) {
  float largest[kStrips][2];
  bool grown = false;
#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float max = score[s][0][r * 2];
#pragma unroll
      for (int j = 0; j < 2 * kSteps; ++j)
        max = fmaxf(max, fmaxf(score[s][j][r * 2], score[s][j][r * 2 + 1]));
      largest[s][r] = max * scale;
      grown |= largest[s][r] > strip[s].base[r] + kSlack;
    }
  }
  if (__any_sync(~0u, grown)) {
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
#pragma unroll
      for (int r = 0; r < 2; ++r) strip[s].move_base(r, largest[s][r]);
    }
  }
#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int j = 0; j < 2 * kSteps; ++j) {
        const float low = exp2_approximate(score[s][j][r * 2] * scale - strip[s].base[r]);
        const float high = exp2_approximate(score[s][j][r * 2 + 1] * scale - strip[s].base[r]);
        strip[s].total[r] += low + high;
        weight[s][j / 2][j % 2 * 2 + r] = pack<T>(low, high);
      }
    }
  }
}

/// The operands b of kStep keys for the columns behind the last 16: b[j] of the j-th octet.
template <int D>
__device__ inline void load_last_keys(uint32_t (&b)[kStep / 8], const char* keys) {
  using O = Octet<D>;
  const int lane = lane_again();
  if constexpr (D % 16 == 8) {
    static_assert(kStep == 32);
    load_matrices(b, keys + lane / 8 * O::kBytes + (O::kGroups - 1) * O::kGroupBytes + lane % 8 * 16);
  } else {  // 4 columns: the other 4 of the group meet zeros of the queries
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j)
      b[j] =
          *reinterpret_cast<const uint32_t*>(keys + j * O::kBytes + O::kTailAt + lane / 4 * 8 + lane % 2 * 4);
  }
}

/// The operands b of kStep values for one group of columns: b[2j] and b[2j + 1] are positions 16j to 16j + 15.
template <int D>
__device__ inline void load_values(uint32_t (&b)[kStep / 8], const char* values, int group) {
  using O = Octet<D>;
  const int lane = lane_again();
  if (group < O::kGroups) {
    load_matrices_transposed(b, values + lane / 8 * O::kBytes + group * O::kGroupBytes + lane % 8 * 16);
  } else {  // 4 columns, twice: nobody reads the sums of the second 4
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
      const char* v = values + j * O::kBytes + O::kTailAt + lane % 4 * 16 + lane / 4 % 4 * 2;
      b[j] = *reinterpret_cast<const uint16_t*>(v) | *reinterpret_cast<const uint16_t*>(v + 8) << 16;
    }
  }
}

}  // namespace pipeinfer::kernels::cuda::prefill

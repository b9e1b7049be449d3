// Attention of a step's tokens over what the cache holds. Here: neighbouring tokens in tiles, on tensor cores, in the
// order of FlashAttention-2 (Dao 2023, arXiv:2307.08691). A block takes some tokens of one query head, a warp 16 or 32 of
// them; for each run of them (tokens of one slot at consecutive positions) it walks over the run's keys and values in
// tiles of kKeys positions, the next of which is on its way meanwhile. Queries, scores and sums stay in registers;
// weights become the next product's operand there. On sm_90 attention_prefill_groups.cu does this.
#include "launch.cuh"
#include "prefill_work.cuh"

namespace pipeinfer::kernels::cuda {
using namespace prefill;

namespace {

/// score = queries * keys^T for kStep keys: score[s][j] are strip s and keys 8j to 8j + 7.
template <typename T, int D>
__device__ inline void multiply_keys(float (&score)[Shape<D>::kStrips][kStep / 8][4],
                                     const Strip<T, D> (&strip)[Shape<D>::kStrips], const char* keys) {
  using S = Shape<D>;
  using O = Octet<D>;
  const int lane = lane_again();
  const char* k = keys + lane / 16 * O::kBytes + lane % 16 * 16;
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
#pragma unroll
    for (int j = 0; j < kStep / 8; j += 2) {
      uint32_t b[4];
      load_matrices(b, k + j * O::kBytes + i * 2 * O::kGroupBytes);
#pragma unroll
      for (int s = 0; s < S::kStrips; ++s) {
        mma_16x8x16<T>(score[s][j], strip[s].query[i], {b[0], b[1]});
        mma_16x8x16<T>(score[s][j + 1], strip[s].query[i], {b[2], b[3]});
      }
    }
  }
  if constexpr (D % 16 != 0) {
    uint32_t b[kStep / 8];
    load_last_keys<D>(b, keys);
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
      for (int s = 0; s < S::kStrips; ++s) {
        const auto& query = strip[s].query[S::kSteps - 1];
        mma_16x8x8<T>(score[s][j], {query[0], query[1]}, b[j]);
      }
    }
  }
}

/// sum += weights * values; weight[s][j] are the operands of strip s for positions 16j to 16j + 15. Where `mixed`, only
/// rows that are `own` take part: not left to weights of 0, since a NaN among one sequence's values must not reach its
/// neighbours in the warp.
template <bool mixed, typename T, int D>
__device__ inline void multiply_values(Strip<T, D> (&strip)[Shape<D>::kStrips],
                                       const uint32_t (&weight)[Shape<D>::kStrips][kStep / 16][4],
                                       const char* values, const bool (&own)[Shape<D>::kStrips][2]) {
  using S = Shape<D>;
  constexpr int kAtOnce = 2;
#pragma unroll
  for (int i = 0; i < S::kGroups; i += kAtOnce) {
    uint32_t b[kAtOnce][kStep / 8];
    float sum[kAtOnce][S::kStrips][4];
#pragma unroll
    for (int n = 0; n < kAtOnce && i + n < S::kGroups; ++n) {
      load_values<D>(b[n], values, i + n);
#pragma unroll
      for (int s = 0; s < S::kStrips; ++s) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[n][s][e] = strip[s].sum[i + n][e];
      }
    }
#pragma unroll
    for (int j = 0; j < kStep / 16; ++j) {
#pragma unroll
      for (int n = 0; n < kAtOnce && i + n < S::kGroups; ++n) {
#pragma unroll
        for (int s = 0; s < S::kStrips; ++s)
          mma_16x8x16<T>(sum[n][s], weight[s][j], {b[n][2 * j], b[n][2 * j + 1]});
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce && i + n < S::kGroups; ++n) {
#pragma unroll
      for (int s = 0; s < S::kStrips; ++s) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (!mixed || own[s][e / 2]) strip[s].sum[i + n][e] = sum[n][s][e];
        }
      }
    }
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, 2)
    prefill_kernel(T* out, const T* qkv, KvLayer cache, TokenTable tokens, int n_heads, float scale) {
  using S = Shape<D>;
  using O = Octet<D>;
  extern __shared__ uint4 shared[];
  __shared__ Tokens<S::kQueries> own;
  __shared__ KeyTile tiles[4];  // this one, the next, and the one after it
  char* buffers = reinterpret_cast<char*>(shared);
  const int head = blockIdx.x, kv_head = head / (n_heads / cache.n_kv_heads);
  const int tile_of_tokens = gridDim.y - 1 - blockIdx.y;  // long contexts first
  const int t0 = tokens.n_single + tile_of_tokens * S::kQueries;
  cache.head_dim = D;  // known to the compiler
  const int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * S::kRows;

  wait_for_previous();
  Strip<T, D> strip[S::kStrips];
  const int64_t pitch = int64_t{n_heads + 2 * cache.n_kv_heads} * D;
#pragma unroll
  for (int s = 0; s < S::kStrips; ++s) {
    const int t = t0 + first_row + s * 16;
    strip[s].load(qkv + t * pitch + head * D, pitch, tokens.n_tokens - t);
  }
  own.read(tokens, t0);
  __syncthreads();
  if (threadIdx.x == 0) {
    tiles[0].end = 0;
    tiles[0].enter_run(own, tokens);
    tiles[1] = tiles[0];
    tiles[1].next(own, tokens);
  }
  __syncthreads();
  tiles[0].fetch<T, D>(buffers, tokens, cache, kv_head);

  for (unsigned n = 0;; ++n) {
    const KeyTile& tile = tiles[n % 4];
    const KeyTile& ahead = tiles[(n + 1) % 4];
    wait_copies<0>();
    __syncthreads();  // the tile is there, and the one before was used
    const bool more = ahead.begin < own.count;
    if (more) ahead.fetch<T, D>(buffers + (n + 1) % 2 * 2 * S::kTile, tokens, cache, kv_head);
    if (threadIdx.x == 0) {
      KeyTile& further = tiles[(n + 2) % 4];
      further = ahead;
      further.next(own, tokens);
    }

    const int begin = max(first_row, tile.begin), end = min(first_row + S::kRows, tile.end);
    const bool mixed = end - begin < S::kRows;  // not all of the warp's tokens are of the run
    bool mine[S::kStrips][2];                   // which rows are
#pragma unroll
    for (int s = 0; s < S::kStrips; ++s) {
      for (int r = 0; r < 2; ++r) mine[s][r] = tile.has(first_row + s * 16 + lane / 4 + r * 8);
    }
    const char* keys = buffers + n % 2 * 2 * S::kTile;
#pragma unroll 1
    for (int key = 0; begin < end && key < min(kKeys, end + tile.shift);
         key += kStep, keys += kStep / kOctet * O::kBytes) {
      float score[S::kStrips][kStep / 8][4] = {};
      multiply_keys<T, D>(score, strip, keys);
      if (mixed || key + kStep - 1 > begin + tile.shift) {
#pragma unroll
        for (int s = 0; s < S::kStrips; ++s) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = first_row + s * 16 + lane / 4 + e / 2 * 8;
            const int visible = mine[s][e / 2] ? row + tile.shift - key - lane % 4 * 2 - e % 2 : -1;
#pragma unroll
            for (int j = 0; j < kStep / 8; ++j) {
              if (j * 8 > visible) score[s][j][e] = -INFINITY;
            }
          }
        }
      }

      uint32_t weight[S::kStrips][kStep / 16][4];
      weigh(weight, strip, score, scale);
      if (mixed) {
        multiply_values<true>(strip, weight, keys + S::kTile, mine);
      } else {
        multiply_values<false>(strip, weight, keys + S::kTile, mine);
      }
    }
    if (!more) break;
  }

#pragma unroll
  for (int s = 0; s < S::kStrips; ++s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + s * 16 + lane / 4 + r * 8;
      T* to = out + (int64_t{own.first + row} * n_heads + head) * D;
      strip[s].store_row(r, row < own.count ? to : nullptr);
    }
  }
}

/// Whether there is a kernel for this; then it is launched.
template <typename T, int D>
bool launch(T* out, const T* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads, float scale,
            Stream& stream) {
  using S = Shape<D>;
  const auto kernel = prefill_kernel<T, D>;
  if (code_version(kernel) < 80 || cache.block_size % 8 != 0 || !aligned(16, qkv, cache.data)) return false;
  allow_shared(kernel, S::kShared);
  const dim3 grid(n_heads, (tokens.n_tokens - tokens.n_single + S::kQueries - 1) / S::kQueries);
  launch_dependent(kernel, grid, kThreads, S::kShared, stream, out, qkv, cache, tokens, n_heads,
                   scale * 1.44269504f);
  return true;
}

/// attend_tiles on tensor cores; false where that is not for them.
bool attend_runs(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                 float scale, DType dtype, Stream& stream) {
  bool done = false;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (kHasMma<T>) {
      with_head_dim(cache.head_dim, [&](auto d) {
        done = launch<T, d()>(static_cast<T*>(out), static_cast<const T*>(qkv), cache, tokens, n_heads, scale,
                              stream);
      });
    }
  });
  return done;
}

}  // namespace

void paged_attention(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                     float scale, DType dtype, Stream& stream) {
  if (tokens.n_single > 0) attend_single(out, qkv, cache, tokens, n_heads, scale, dtype, stream);
  if (tokens.n_single == tokens.n_tokens) return;
  if (!tokens.reference && (attend_groups(out, qkv, cache, tokens, n_heads, scale, dtype, stream) ||
                            attend_runs(out, qkv, cache, tokens, n_heads, scale, dtype, stream)))
    return;
  attend_tiles(out, qkv, cache, tokens, n_heads, scale, dtype, stream);
}

}  // namespace pipeinfer::kernels::cuda

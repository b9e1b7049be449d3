// Attention of a step's tokens over what the cache holds. Here: neighbouring tokens in tiles, on tensor cores, in the
// order of FlashAttention-2 (Dao 2023, arXiv:2307.08691). A block takes kQueries tokens of one query head, a warp 16 of
// them; for each run of them (tokens of one slot at consecutive positions) it walks over the run's keys and values in
// tiles of kKeys positions. K and V have one place each in shared memory: V comes while the scores are computed, the next
// K while the values are summed. Scores and sums stay in registers, weights become the next product's operand there.
#include "launch.cuh"
#include "prefill_work.cuh"

namespace pipeinfer::kernels::cuda {
using namespace prefill;

namespace {

/// score = queries * keys^T for a warp's 16 queries: score[j] are keys 8j to 8j + 7 (fragments as mma_16x8x16's c).
template <typename T, int D>
__device__ inline void multiply_keys(float (&score)[kKeys / 8][4], const char* queries, const char* keys) {
  constexpr int kStride = Rows<D>::kStride, kGroups = Rows<D>::kGroups;
  const int lane = lane_again(), matrix = lane / 8;
  const char* q = queries + (matrix % 2 * 8 + lane % 8) * kStride + matrix / 2 * 16;
  const char* k = keys + (matrix / 2 * 8 + lane % 8) * kStride + matrix % 2 * 16;
#pragma unroll
  for (int i = 0; i < kGroups / 2; ++i) {
    uint32_t a[4];
    load_matrices(a, q + i * 32);
#pragma unroll
    for (int j = 0; j < kKeys / 8; j += 2) {
      uint32_t b[4];
      load_matrices(b, k + j * 8 * kStride + i * 32);
      mma_16x8x16<T>(score[j], a, {b[0], b[1]});
      mma_16x8x16<T>(score[j + 1], a, {b[2], b[3]});
    }
  }
  if constexpr (kGroups % 2 == 1) {  // 8 more columns
    uint32_t a[4];
    load_matrices(a, queries + (matrix % 2 * 8 + lane % 8) * kStride + (kGroups - 1) * 16);
#pragma unroll
    for (int j = 0; j < kKeys / 8; j += 4) {
      uint32_t b[4];
      load_matrices(b, keys + ((j + matrix) * 8 + lane % 8) * kStride + (kGroups - 1) * 16);
#pragma unroll
      for (int n = 0; n < 4; ++n) mma_16x8x8<T>(score[j + n], {a[0], a[1]}, b[n]);
    }
  }
}

/// sum += weights * values for one group of 8 columns; weight[j] are the operands for positions 16j to 16j + 15.
template <typename T, int D>
__device__ inline void multiply_group(float (&sum)[4], const uint32_t (&weight)[kKeys / 16][4],
                                      const char* values, int group) {
  const char* v = values + lane_again() * Rows<D>::kStride + group * 16;
#pragma unroll
  for (int j = 0; j < kKeys / 16; j += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, v + j * 16 * Rows<D>::kStride);
    mma_16x8x16<T>(sum, weight[j], {b[0], b[1]});
    mma_16x8x16<T>(sum, weight[j + 1], {b[2], b[3]});
  }
}

/// The same for all columns, two groups a load.
template <typename T, int D>
__device__ inline void multiply_values(float (&sum)[Rows<D>::kGroups][4],
                                       const uint32_t (&weight)[kKeys / 16][4], const char* values) {
  constexpr int kStride = Rows<D>::kStride, kGroups = Rows<D>::kGroups;
  const int lane = lane_again(), matrix = lane / 8;
  const char* v = values + (matrix % 2 * 8 + lane % 8) * kStride + matrix / 2 * 16;
#pragma unroll
  for (int i = 0; i + 1 < kGroups; i += 2) {
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t b[4];
      load_matrices_transposed(b, v + j * 16 * kStride + i * 16);
      mma_16x8x16<T>(sum[i], weight[j], {b[0], b[1]});
      mma_16x8x16<T>(sum[i + 1], weight[j], {b[2], b[3]});
    }
  }
  if constexpr (kGroups % 2 == 1) multiply_group<T, D>(sum[kGroups - 1], weight, values, kGroups - 1);
}

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, D <= 104 ? 2 : 1)
    prefill_kernel(T* out, const T* qkv, KvLayer cache, TokenTable tokens, int n_heads, float scale) {
  using R = Rows<D>;
  extern __shared__ uint4 shared[];
  __shared__ Tokens own;
  __shared__ KeyTile tiles[2];  // this one and the next: in registers they would displace sums
  char* queries = reinterpret_cast<char*>(shared);
  char* keys = queries + kQueries * R::kStride;
  char* values = keys + kKeys * R::kStride;
  const int head = blockIdx.y, kv_head = head / (n_heads / cache.n_kv_heads);
  const int64_t t0 = tokens.n_single + int64_t{gridDim.x - 1 - blockIdx.x} * kQueries;  // long contexts first
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  own.read(tokens, t0);
  if constexpr (D % 8 != 0) {
    for (int row = threadIdx.x; row < kQueries + 2 * kKeys; row += kThreads)
      *reinterpret_cast<uint2*>(queries + row * R::kStride + D * 2) = uint2{0, 0};
  }
  __syncthreads();
  const int64_t pitch = int64_t{n_heads + 2 * cache.n_kv_heads} * D;
  for (int half = 0; half < 16; half += 8) {
    const int row = warp * 16 + half;
    R::fetch(lane_again(), queries + row * R::kStride,
             reinterpret_cast<const char*>(qkv + (t0 + row) * pitch + head * D), pitch * sizeof(T),
             own.count - row);
  }
  if (threadIdx.x == 0) {
    tiles[0].end = 0;
    tiles[0].enter_run(own, tokens, t0);
  }
  __syncthreads();
  tiles[0].fetch<T, D>(keys, cache, kv_head, 0);

  const int rows[2] = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8};
  float sum[R::kGroups][4] = {}, largest[2] = {-INFINITY, -INFINITY},
        total[2] = {};  // total: of this lane's keys
  for (int n = 0;; ++n) {
    const KeyTile& tile = tiles[n % 2];
    KeyTile& ahead = tiles[(n + 1) % 2];
    wait_copies<0>();
    __syncthreads();  // the keys are there, the values before were used
    tile.fetch<T, D>(values, cache, kv_head, v_offset(cache));
    if (threadIdx.x == 0) {
      ahead = tile;
      ahead.next(own, tokens, t0);
    }

    const int begin = max(warp * 16, tile.begin), end = min(warp * 16 + 16, tile.end);
    const bool active =
        begin < end && tile.first <= own.position[end - 1];  // some of the warp's tokens see a key
    const bool mixed = end - begin < 16;                     // not all are of the run
    uint32_t weight[kKeys / 16][4];
    if (active) {
      float score[kKeys / 8][4] = {};
      multiply_keys<T, D>(score, queries + warp * 16 * R::kStride, keys);
      if (mixed || tile.first + kKeys - 1 > own.position[begin]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int visible = tile.has(rows[r]) ? own.position[rows[r]] - tile.first - lane % 4 * 2 : -1;
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              if (j * 8 + e > visible) score[j][r * 2 + e] = -INFINITY;
            }
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float new_max = -INFINITY;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j)
          new_max = fmaxf(new_max, fmaxf(score[j][r * 2], score[j][r * 2 + 1]));
        new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, 1));
        new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, 2));
        new_max = fmaxf(largest[r], new_max * scale);
        const float base = new_max == -INFINITY ? 0 : new_max;  // no key seen yet: all weights are 0
        const float factor = exp2f(largest[r] - base);
        largest[r] = new_max;
        total[r] *= factor;
#pragma unroll
        for (int i = 0; i < R::kGroups; ++i) {
          sum[i][r * 2] *= factor;
          sum[i][r * 2 + 1] *= factor;
        }
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
          const float low = exp2f(score[j][r * 2] * scale - base);
          const float high = exp2f(score[j][r * 2 + 1] * scale - base);
          total[r] += low + high;
          weight[j / 2][j % 2 * 2 + r] = pack<T>(low, high);
        }
      }
    }

    wait_copies<0>();
    __syncthreads();  // the values are there, the keys were used
    const bool more = ahead.begin < own.count;
    if (more) ahead.fetch<T, D>(keys, cache, kv_head, 0);
    if (active) {
      // Not left to weights of 0: a NaN among one sequence's values must not reach its neighbours in the warp.
      if (mixed) {
#pragma unroll
        for (int i = 0; i < R::kGroups; ++i) {
          float joined[4] = {sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
          __syncwarp();  // keeps the compiler from loading ahead: registers are scarce
          multiply_group<T, D>(joined, weight, values, i);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (tile.has(rows[e / 2])) sum[i][e] = joined[e];
          }
        }
      } else {
        multiply_values<T, D>(sum, weight, values);
      }
    }
    if (!more) break;
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    if (rows[r] >= own.count) continue;
    T* to = out + ((t0 + rows[r]) * n_heads + head) * D;
    const float factor = 1 / total[r];
#pragma unroll
    for (int i = 0; i < R::kGroups; ++i) {
      const int column = i * 8 + lane % 4 * 2;
      const float both[2] = {sum[i][r * 2] * factor, sum[i][r * 2 + 1] * factor};
      if (column < D) store(to + column, both);
    }
  }
}

/// Whether there is a kernel for this; then it is launched.
template <typename T, int D>
bool launch(T* out, const T* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads, float scale,
            Stream& stream) {
  const auto kernel = prefill_kernel<T, D>;
  if (code_version(kernel) < 80 || cache.block_size % 8 != 0 || !aligned(16, qkv, cache.data)) return false;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared<D>),
             "attend_runs");
  const dim3 grid((tokens.n_tokens - tokens.n_single + kQueries - 1) / kQueries, n_heads);
  kernel<<<grid, kThreads, kShared<D>, native(stream)>>>(out, qkv, cache, tokens, n_heads,
                                                         scale * 1.44269504f);
  check_launch("attend_runs");
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
  if (!tokens.reference && attend_runs(out, qkv, cache, tokens, n_heads, scale, dtype, stream)) return;
  attend_tiles(out, qkv, cache, tokens, n_heads, scale, dtype, stream);
}

}  // namespace pipeinfer::kernels::cuda

// The plain kernel of neighbouring tokens, for any head_dim, type and GPU, in tiles and in fp32 on the CUDA cores (FlashAttention's order, Dao et al. 2022): a
// block takes BQ tokens of one query head; for each run of them (tokens of one slot at consecutive positions) it walks
// over the run's keys and values in tiles of BK positions that pass through shared memory.
#include "kv.cuh"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kThreads =
    128;  // 16 groups of 8: a group shares BQ / 16 tokens, a thread has every 8th key of a tile

/// BQ tokens, BK positions, C column groups of 32 (at least head_dim / 32), N elements a load.
template <typename T, int BQ, int BK, int C, int N>
struct Tile {
  static constexpr int kTokens = BQ / 16;
  static constexpr int kKeys = BK / 8;
  static constexpr int kScoreStride = BK + 4;

  /// Floats from one row to the next: rows that 8 neighbouring threads read as float4 fall into different banks.
  __host__ __device__ static int stride(int head_dim) { return (head_dim + 31) / 32 * 32 + 4; }
  static size_t shared_bytes(int head_dim) {
    return ((BQ + BK) * stride(head_dim) + BQ * kScoreStride) * sizeof(float);
  }

  /// Positions [first, first + BK) into rows of `tile`; zeros from `end` on (the cache may hold NaN there).
  __device__ static void fetch(float* tile, const KvLayer& cache, const int32_t* blocks, int kv_head,
                               int64_t offset, int first, int end) {
    const int vectors = cache.head_dim / N, row_stride = stride(cache.head_dim);
    for (int item = threadIdx.x; item < BK * vectors; item += kThreads) {
      const int row = item / vectors, i = item % vectors * N;
      float values[N] = {};
      if (first + row < end)
        load(values, key_octet<T>(cache, blocks, first + row, kv_head) + offset +
                         octet_offset(cache.head_dim, first + row, i));
      store(tile + row * row_stride + i, values);
    }
  }
};

template <typename T, int BQ, int BK, int C, int N>
__global__ void __launch_bounds__(kThreads)
    attend_tiles_kernel(T* out, const T* qkv, KvLayer cache, TokenTable tokens, int n_heads, float scale) {
  using Tile = Tile<T, BQ, BK, C, N>;
  extern __shared__ float4 shared[];
  __shared__ int position_of[BQ];
  __shared__ unsigned starts[2];  // bit i: token i of the tile starts a run
  static_assert(BQ <= 64);
  const int d = cache.head_dim, stride = Tile::stride(d);
  float* query = reinterpret_cast<float*>(shared);  // [BQ, stride]
  float* kv = query + BQ * stride;                  // [BK, stride]: keys, then values
  float* score = kv + BK * stride;                  // [BQ, kScoreStride]

  const int head = blockIdx.y, kv_head = head / (n_heads / cache.n_kv_heads);
  const int64_t t0 = tokens.n_single + int64_t{blockIdx.x} * BQ;
  const int count = static_cast<int>(min(int64_t{BQ}, tokens.n_tokens - t0));
  const int column = threadIdx.x % 8, first_token = threadIdx.x / 8 * Tile::kTokens;

  for (int i = threadIdx.x; i < (BQ + BK) * stride; i += kThreads) query[i] = 0;  // padding columns stay zero
  __syncthreads();
  for (int item = threadIdx.x; item < count * (d / N); item += kThreads) {
    const int row = item / (d / N), i = item % (d / N) * N;
    float values[N];
    load(values, qkv + ((t0 + row) * (n_heads + 2 * cache.n_kv_heads) + head) * d + i);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] *= scale;
    store(query + row * stride + i, values);
  }
  if (threadIdx.x < 64) {
    const int i = threadIdx.x;
    const int64_t t = t0 + i;
    const bool start = i < count && (i == 0 || tokens.slot[t] != tokens.slot[t - 1] ||
                                     tokens.position[t] != tokens.position[t - 1] + 1);
    const unsigned bits = __ballot_sync(~0u, start);
    if (i % 32 == 0) starts[i / 32] = bits;
    if (i < BQ) position_of[i] = i < count ? tokens.position[t] : -1;
  }
  __syncthreads();
  const uint64_t all_starts = uint64_t{starts[1]} << 32 | starts[0];

  float sum[Tile::kTokens][C][4] = {}, max[Tile::kTokens], total[Tile::kTokens] = {};
#pragma unroll
  for (int a = 0; a < Tile::kTokens; ++a) max[a] = -INFINITY;

  for (int begin = 0, end; begin < count; begin = end) {
    const uint64_t later = begin < 63 ? all_starts >> (begin + 1) : 0;
    end = later ? begin + __ffsll(static_cast<long long>(later)) : count;
    const int32_t* blocks = blocks_of(tokens, tokens.slot[t0 + begin]);
    const int keys = position_of[end - 1] + 1;
    for (int k0 = 0; k0 < keys; k0 += BK) {
      __syncthreads();  // the last tile's values were used
      Tile::fetch(kv, cache, blocks, kv_head, 0, k0, keys);
      __syncthreads();
      float s[Tile::kTokens][Tile::kKeys] = {};
      for (int i = 0; i < d; i += 4) {
        float4 q[Tile::kTokens];
#pragma unroll
        for (int a = 0; a < Tile::kTokens; ++a)
          q[a] = *reinterpret_cast<const float4*>(query + (first_token + a) * stride + i);
#pragma unroll
        for (int b = 0; b < Tile::kKeys; ++b) {
          const float4 k = *reinterpret_cast<const float4*>(kv + (column + 8 * b) * stride + i);
#pragma unroll
          for (int a = 0; a < Tile::kTokens; ++a)
            s[a][b] += q[a].x * k.x + q[a].y * k.y + q[a].z * k.z + q[a].w * k.w;
        }
      }
#pragma unroll
      for (int a = 0; a < Tile::kTokens; ++a) {
        const int row = first_token + a;
        const int visible = row >= begin && row < end ? position_of[row] : -1;
        float new_max = max[a];
#pragma unroll
        for (int b = 0; b < Tile::kKeys; ++b) {
          if (k0 + column + 8 * b <= visible) new_max = fmaxf(new_max, s[a][b]);
        }
#pragma unroll
        for (int offset = 4; offset > 0; offset /= 2)
          new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, offset));
        const float rescale = max[a] == new_max ? 1 : expf(max[a] - new_max);  // both may be -inf
        max[a] = new_max;
        total[a] *= rescale;
#pragma unroll
        for (int c = 0; c < C; ++c) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[a][c][j] *= rescale;
        }
#pragma unroll
        for (int b = 0; b < Tile::kKeys; ++b) {
          const float p = k0 + column + 8 * b <= visible ? expf(s[a][b] - new_max) : 0;
          total[a] += p;  // of this thread's keys; the group's are added at the end
          score[row * Tile::kScoreStride + column + 8 * b] = p;
        }
      }
      __syncthreads();  // the keys were used, the scores are there
      Tile::fetch(kv, cache, blocks, kv_head, v_offset(cache), k0, keys);
      __syncthreads();
      for (int k = 0; k < BK; k += 4) {
        float p[Tile::kTokens][4];
#pragma unroll
        for (int a = 0; a < Tile::kTokens; ++a)
          load(p[a], score + (first_token + a) * Tile::kScoreStride + k);
#pragma unroll
        for (int c = 0; c < C; ++c) {
          if (c * 32 >= d) continue;
#pragma unroll
          for (int b = 0; b < 4; ++b) {
            float v[4];
            load(v, kv + (k + b) * stride + c * 32 + column * 4);
#pragma unroll
            for (int a = 0; a < Tile::kTokens; ++a) {
              // Not left to p = 0: a NaN among one sequence's values must not reach its neighbours in the tile.
              if (first_token + a < begin || first_token + a >= end) continue;
#pragma unroll
              for (int j = 0; j < 4; ++j) sum[a][c][j] += p[a][b] * v[j];
            }
          }
        }
      }
    }
  }

#pragma unroll
  for (int a = 0; a < Tile::kTokens; ++a) {
#pragma unroll
    for (int offset = 4; offset > 0; offset /= 2) total[a] += __shfl_xor_sync(~0u, total[a], offset);
    const int row = first_token + a;
    if (row >= count) continue;
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = c * 32 + column * 4 + j;
        if (i < d) out[((t0 + row) * n_heads + head) * d + i] = from_float<T>(sum[a][c][j] / total[a]);
      }
    }
  }
}

template <typename T, int BQ, int BK, int C, int N>
void launch(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
            float scale, Stream& stream) {
  const auto kernel = attend_tiles_kernel<T, BQ, BK, C, N>;
  const int shared = static_cast<int>(Tile<T, BQ, BK, C, N>::shared_bytes(cache.head_dim));
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
             "attend_tiles");
  const dim3 grid((tokens.n_tokens - tokens.n_single + BQ - 1) / BQ, n_heads);
  kernel<<<grid, kThreads, shared, native(stream)>>>(static_cast<T*>(out), static_cast<const T*>(qkv), cache,
                                                     tokens, n_heads, scale);
  check_launch("attend_tiles");
}

}  // namespace

void attend_tiles(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                  float scale, DType dtype, Stream& stream) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const bool wide =
        cache.head_dim % 4 == 0 && cache.head_dim <= 128 && aligned(4 * sizeof(T), qkv, cache.data);
    if (wide) {
      launch<T, 64, 32, 4, 4>(out, qkv, cache, tokens, n_heads, scale, stream);
    } else {
      launch<T, 32, 16, 8, 2>(out, qkv, cache, tokens, n_heads, scale, stream);
    }
  });
}

}  // namespace pipeinfer::kernels::cuda

// The plain kernel of single tokens, for any head_dim and GPU: a block per token and query head, its warps share the context. Each warp keeps an online
// softmax over the positions it takes, four neighbours at a time (they are in one octet); at the end the warps'
// results are joined.
#include "kv.cuh"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kGroup = 4;

/// A lane holds C vectors of N elements of a row: elements (c * 32 + lane) * N.
template <typename T, int N, int C>
__global__ void __launch_bounds__(kWarps * 32)
    attend_single_kernel(T* out, const T* qkv, KvLayer cache, TokenTable tokens, int n_heads, float scale) {
  __shared__ float warp_max[kWarps], warp_total[kWarps], warp_sum[kWarps][kMaxHeadDim];
  const int64_t t = blockIdx.x;
  const int head = blockIdx.y, kv_head = head / (n_heads / cache.n_kv_heads);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int d = cache.head_dim, context = tokens.position[t] + 1;
  const int32_t* blocks = blocks_of(tokens, tokens.slot[t]);
  const int64_t to_v = v_offset(cache);

  float q[C][N] = {}, sum[C][N] = {}, max = -INFINITY, total = 0;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const int i = (c * 32 + lane) * N;
    if (i < d) load(q[c], qkv + (t * (n_heads + 2 * cache.n_kv_heads) + head) * d + i);
#pragma unroll
    for (int j = 0; j < N; ++j) q[c][j] *= scale;
  }

  for (int first = warp * kGroup; first < context; first += kWarps * kGroup) {
    const T* k = key_octet<T>(cache, blocks, first, kv_head);
    float score[kGroup], v[kGroup][C][N];
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      score[g] = 0;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int i = (c * 32 + lane) * N;
        float key[N] = {};
#pragma unroll
        for (int j = 0; j < N; ++j)
          v[g][c][j] = 0;  // beyond the context the cache may hold anything, NaN too
        if (first + g < context && i < d) {
          const int at = octet_offset(d, first + g, i);
          load(key, k + at);
          load(v[g][c], k + to_v + at);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) score[g] += q[c][j] * key[j];
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
#pragma unroll
      for (int g = 0; g < kGroup; ++g) score[g] += __shfl_xor_sync(~0u, score[g], offset);
    }
    float new_max = max;
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (first + g < context) new_max = fmaxf(new_max, score[g]);
    }
    const float rescale = expf(max - new_max);
    max = new_max;
    total *= rescale;
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum[c][j] *= rescale;
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const float p = first + g < context ? expf(score[g] - max) : 0;
      total += p;
#pragma unroll
      for (int c = 0; c < C; ++c) {
#pragma unroll
        for (int j = 0; j < N; ++j) sum[c][j] += p * v[g][c][j];
      }
    }
  }

  if (lane == 0) {
    warp_max[warp] = max;  // -inf where the warp had no position: its factor below is 0
    warp_total[warp] = total;
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int i = (c * 32 + lane) * N + j;
      if (i < d) warp_sum[warp][i] = sum[c][j];
    }
  }
  __syncthreads();
  const int i = threadIdx.x;
  if (i >= d) return;
  float block_max = warp_max[0], block_sum = 0, block_total = 0;
  for (int w = 1; w < kWarps; ++w) block_max = fmaxf(block_max, warp_max[w]);
  for (int w = 0; w < kWarps; ++w) {
    const float factor = expf(warp_max[w] - block_max);
    block_sum += factor * warp_sum[w][i];
    block_total += factor * warp_total[w];
  }
  out[(t * n_heads + head) * d + i] = from_float<T>(block_sum / block_total);
}
static_assert(kWarps * 32 >= kMaxHeadDim, "a thread writes one element");

}  // namespace

void attend_single(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                   float scale, DType dtype, Stream& stream) {
  const dim3 grid(tokens.n_single, n_heads);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const bool wide =
        cache.head_dim % 4 == 0 && cache.head_dim <= 128 && aligned(4 * sizeof(T), qkv, cache.data);
    const auto kernel = wide ? attend_single_kernel<T, 4, 1> : attend_single_kernel<T, 2, 4>;
    kernel<<<grid, kWarps * 32, 0, native(stream)>>>(static_cast<T*>(out), static_cast<const T*>(qkv), cache,
                                                     tokens, n_heads, scale);
  });
  check_launch("attend_single");
}

}  // namespace pipeinfer::kernels::cuda

// Rotary embedding of q in place, and of k into the paged cache together with v.
#include "kv.cuh"
#include "rotate.cuh"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kHeadsABlock = 8;

/// Block (t, y): heads [y * 8, y * 8 + 8) of token t, counted over q, k and v heads.
template <typename T>
__global__ void rope_and_cache_kernel(T* qkv, KvLayer cache, TokenTable tokens, Rope rope, int n_heads) {
  __shared__ float cosine[kMaxHeadDim / 2], sine[kMaxHeadDim / 2];
  const int64_t t = blockIdx.x;
  const int d = cache.head_dim, half = d / 2, n_kv = cache.n_kv_heads;
  const int slot = tokens.slot[t], position = tokens.position[t];
  for (int i = threadIdx.x; i < half; i += kThreads) {
    const float2 angle = rope_angle(rope, tokens, slot, position, i, d);
    cosine[i] = angle.x;
    sine[i] = angle.y;
  }
  __syncthreads();

  const int n_rows = n_heads + 2 * n_kv;
  const int first = blockIdx.y * kHeadsABlock, last = min(first + kHeadsABlock, n_rows);
  const int32_t* blocks = blocks_of(tokens, slot);
  for (int item = threadIdx.x; item < (last - first) * half; item += kThreads) {
    const int head = first + item / half, i = item % half;
    T* from = qkv + (t * n_rows + head) * d;
    if (head >= n_heads + n_kv) {
      T* to = key_row<T>(cache, blocks, position, head - n_heads - n_kv) + v_offset(cache);
      to[i] = from[i];
      to[i + half] = from[i + half];
    } else {
      T* to = head < n_heads ? from : key_row<T>(cache, blocks, position, head - n_heads);
      const float a = to_float(from[i]), b = to_float(from[i + half]);
      to[i] = from_float<T>(a * cosine[i] - b * sine[i]);
      to[i + half] = from_float<T>(b * cosine[i] + a * sine[i]);
    }
  }
}

}  // namespace

void rope_and_cache(void* qkv, const KvLayer& cache, const TokenTable& tokens, const Rope& rope, int n_heads,
                    DType dtype, Stream& stream) {
  const int heads = n_heads + 2 * cache.n_kv_heads;
  const dim3 grid(tokens.n_tokens, (heads + kHeadsABlock - 1) / kHeadsABlock);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    rope_and_cache_kernel<<<grid, kThreads, 0, native(stream)>>>(static_cast<T*>(qkv), cache, tokens, rope,
                                                                 n_heads);
  });
  check_launch("rope_and_cache");
}

}  // namespace pipeinfer::kernels::cuda

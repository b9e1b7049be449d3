// Rotary embedding of q in place, and of k into the paged cache together with v.
#include "kv.cuh"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kHeads = 8;  // of a warp: its loads are under way together

/// Warp w of block (t, y): heads [(y * kWarps + w) * kHeads, + kHeads) of token t, counted over q, k and v heads. A thread
/// has V neighbouring pairs of each.
template <typename T, int V>
__global__ void __launch_bounds__(kWarps * 32)
    rope_and_cache_kernel(T* qkv, KvLayer cache, TokenTable tokens, int n_heads) {
  const int64_t t = blockIdx.x;
  const int d = cache.head_dim, half = d / 2, n_kv = cache.n_kv_heads, n_rows = n_heads + 2 * n_kv;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first = (static_cast<int>(blockIdx.y) * kWarps + warp) * kHeads;
  const int position = tokens.position[t];
  T* octet = key_octet<T>(cache, blocks_of(tokens, tokens.slot[t]), position, 0);  // of kv head 0
  for (int i = lane * V; i < half; i += 32 * V) {
    float angle[2 * V], a[kHeads][V], b[kHeads][V];
#pragma unroll
    for (int r = 0; r < kHeads; ++r) {
      if (first + r >= n_rows) continue;
      const T* from = qkv + (t * n_rows + first + r) * d + i;
      load(a[r], from);
      load(b[r], from + half);
    }
    load(angle, tokens.angle + t * d + 2 * i);
#pragma unroll
    for (int r = 0; r < kHeads; ++r) {
      const int head = first + r;
      if (head >= n_rows) continue;
      if (head < n_heads + n_kv) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float cosine = angle[2 * j], sine = angle[2 * j + 1], x = a[r][j], y = b[r][j];
          a[r][j] = x * cosine - y * sine;
          b[r][j] = y * cosine + x * sine;
        }
      }
      if (head < n_heads) {
        T* to = qkv + (t * n_rows + head) * d + i;
        store(to, a[r]);
        store(to + half, b[r]);
      } else {
        const int kv_head = head < n_heads + n_kv ? head - n_heads : head - n_heads - n_kv;
        T* to = octet + int64_t{kv_head} * cache.block_size * d;
        if (head >= n_heads + n_kv) to += v_offset(cache);
        store(to + octet_offset(d, position, i), a[r]);
        store(to + octet_offset(d, position, i + half), b[r]);
      }
    }
  }
}

}  // namespace

void rope_and_cache(void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads, DType dtype,
                    Stream& stream) {
  const int heads = n_heads + 2 * cache.n_kv_heads;
  const dim3 grid(tokens.n_tokens, (heads + kWarps * kHeads - 1) / (kWarps * kHeads));
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = cache.head_dim % 4 == 0 ? rope_and_cache_kernel<T, 2> : rope_and_cache_kernel<T, 1>;
    kernel<<<grid, kWarps * 32, 0, native(stream)>>>(static_cast<T*>(qkv), cache, tokens, n_heads);
  });
  check_launch("rope_and_cache");
}

}  // namespace pipeinfer::kernels::cuda

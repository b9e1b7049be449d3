// Rotary embedding of q in place, and of k into the paged cache together with v.
#include "kv.cuh"
#include "rows.cuh"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kHeads = 8;  // of a warp: its loads are under way together

/// Warp w of block (t, y): heads [(y * kWarps + w) * kHeads, + kHeads) of token t, counted over q, k and v heads. A thread
/// has V neighbouring pairs of each. D is head_dim, or 0 for any.
template <typename T, int V, int D>
__global__ void __launch_bounds__(kWarps * 32)
    rope_and_cache_kernel(T* qkv, KvLayer cache, TokenTable tokens, int n_heads) {
  const int64_t t = blockIdx.x;
  const int d = D > 0 ? D : cache.head_dim, half = d / 2, n_rows = n_heads + 2 * cache.n_kv_heads;
  const int first = (static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32) * kHeads;
  const int count = min(kHeads, n_rows - first);
  for (int i = static_cast<int>(threadIdx.x) % 32 * V; i < half; i += 32 * V) {
    T* const row = qkv + (t * n_rows + first) * d + i;
    float angle[2 * V], a[kHeads][V], b[kHeads][V];
#pragma unroll
    for (int r = 0; r < kHeads; ++r) {
      if (r >= count) continue;
      load(a[r], row + r * d);
      load(b[r], row + r * d + half);
    }
    load(angle, tokens.angle + t * d + 2 * i);
    const int position = tokens.position[t];
    const int64_t head_block = int64_t{cache.block_size} * d;  // a block's heads of v follow those of k
    T* const octet =
        key_octet<T>(cache, blocks_of(tokens, tokens.slot[t]), position, 0) + (first - n_heads) * head_block;
    const int to_a = octet_offset(d, position, i), to_b = octet_offset(d, position, i + half);
#pragma unroll
    for (int r = 0; r < kHeads; ++r) {
      if (r >= count) continue;
      if (first + r < n_heads + cache.n_kv_heads) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float cosine = angle[2 * j], sine = angle[2 * j + 1], x = a[r][j], y = b[r][j];
          a[r][j] = x * cosine - y * sine;
          b[r][j] = y * cosine + x * sine;
        }
      }
      const bool query = first + r < n_heads;
      store(query ? row + r * d : octet + r * head_block + to_a, a[r]);
      store(query ? row + r * d + half : octet + r * head_block + to_b, b[r]);
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
    auto kernel = cache.head_dim % 4 == 0 ? rope_and_cache_kernel<T, 2, 0> : rope_and_cache_kernel<T, 1, 0>;
    with_head_dim(cache.head_dim, [&](auto d) { kernel = rope_and_cache_kernel<T, 2, d()>; });
    kernel<<<grid, kWarps * 32, 0, native(stream)>>>(static_cast<T*>(qkv), cache, tokens, n_heads);
  });
  check_launch("rope_and_cache");
}

}  // namespace pipeinfer::kernels::cuda

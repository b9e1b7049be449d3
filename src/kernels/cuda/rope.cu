// Rotary embedding of q in place, and of k into the paged cache together with v.
#include "kv.cuh"
#include "rows.cuh"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kRows = kOctet;  // of a block, so that it may have all of an octet
/// Heads of a block, so many that 8 rows of them fit in 48 KiB: head_dim is at most 128, or 256 where it is not known.
template <typename T, int D>
constexpr int kHeads = (D > 0 ? 32 : 16) / sizeof(T);

/// Of a block: whole warps, a thread for so many elements of a head's rows.
constexpr int threads(int head_dim, int elements) { return (kRows * head_dim / elements + 31) / 32 * 32; }

struct Place {
  int row, dim;
};

/// The element at this offset of an octet: octet_offset() inverted.
__device__ inline Place in_octet(int head_dim, int offset) {
  const int tail = head_dim % 8, i = offset - (head_dim - tail) * kOctet;
  if (i >= 0 && tail > 0) return {i / tail, head_dim - tail + i % tail};
  return {offset / 8 % kOctet, offset / (8 * kOctet) * 8 + offset % 8};
}

/// Block (y, b): tokens [8b, 8b + 8), and the y-th kHeads heads of q or, after those, of k and v. Their rows come into
/// shared memory as they are. Then a thread makes the same V neighbours of every head, and neighbouring threads what lies
/// side by side where it goes: parts of q's rows, or whole lines of an octet, of which a token alone has 16 bytes here and
/// there. Tokens that begin within an octet fill two in part, and other tokens whatever is theirs: every element goes where
/// its own token's slot and position say. D is head_dim, or 0 for any.
template <typename T, int V, int D>
__global__ void __launch_bounds__(D > 0 ? threads(D, V) : 1024, D > 0 ? 1536 / threads(D, V) : 1)
    rope_and_cache_kernel(T* qkv, KvLayer cache, TokenTable tokens, int n_heads) {
  extern __shared__ uint4 shared[];
  T* const rows = reinterpret_cast<T*>(shared);
  const int d = D > 0 ? D : cache.head_dim, half = d / 2, all_heads = n_heads + 2 * cache.n_kv_heads;
  const int pitch = kHeads<T, D> * d + 16 / sizeof(T);  // 16 bytes of every row are in all banks together
  const int q_blocks = (n_heads + kHeads<T, D> - 1) / kHeads<T, D>, y = blockIdx.x;
  const bool query = y < q_blocks;
  const int first = query ? y * kHeads<T, D> : n_heads + (y - q_blocks) * kHeads<T, D>;
  const int count = min(kHeads<T, D>, (query ? n_heads : all_heads) - first);
  const int token = blockIdx.y * kRows, n = min(kRows, tokens.n_tokens - token);
  T* const heads = qkv + (int64_t{token} * all_heads + first) * d;
  const int lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  for (int r = threadIdx.x / 32; r < n; r += n_warps) {
    const T* const of_heads = heads + r * all_heads * d;
#pragma unroll 1  // nothing waits for these copies here, so fewer instructions are faster
    for (int i = lane * V; i < count * d; i += 32 * V)
      copy_to_shared<V * sizeof(T)>(rows + r * pitch + i, of_heads + i);
  }
  commit_copies();

  // Meanwhile: what this thread makes, and where it goes
  const int offset = static_cast<int>(threadIdx.x) * V;
  Place from{offset / d, offset % d};
  if (!query && offset < kRows * d) {
    from = in_octet(d, offset);
    // Rows in the order of their places in an octet, if they are neighbours; each once anyway
    from.row = (from.row - tokens.position[token]) & (kOctet - 1);
  }
  const bool there = from.row < n;
  // By halves of V elements, which the middle of a head never divides
  float angle[2][V];
  int other[2];  // dims, of the pairs' other elements
  T* to = nullptr;
  int64_t stride = d;  // from head to head
  if (there) {
    const int64_t t = token + from.row;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int dim = from.dim + part * (V / 2);
      const bool upper = dim >= half;
      other[part] = upper ? dim - half : dim + half;
      load(angle[part], tokens.angle + t * d + 2 * (upper ? dim - half : dim));
#pragma unroll
      for (int j = 1; j < V; j += 2) angle[part][j] = upper ? angle[part][j] : -angle[part][j];
    }
    if (query) {
      to = heads + from.row * all_heads * d + from.dim;
    } else {
      const int position = tokens.position[t];
      stride = int64_t{cache.block_size} * d;  // a block's heads of v follow those of k
      to = key_octet<T>(cache, blocks_of(tokens, tokens.slot[t]), position, 0) + (first - n_heads) * stride +
           octet_offset(d, position, from.dim);
    }
  }
  wait_copies<0>();
  __syncthreads();
  if (!there) return;
  const T* row = rows + from.row * pitch;
#pragma unroll 2
  for (int h = first; h < first + count; ++h, row += d, to += stride) {
    float x[V];
    load(x, row + from.dim);
    if (h < n_heads + cache.n_kv_heads) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        float y[V / 2];
        load(y, row + other[part]);
#pragma unroll
        for (int j = 0; j < V / 2; ++j) {
          float& value = x[part * (V / 2) + j];
          value = value * angle[part][2 * j] + y[j] * angle[part][2 * j + 1];
        }
      }
    }
    store(to, x);
  }
}

template <typename T, int V, int D>
void launch(void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads, Stream& stream) {
  const auto blocks = [](int heads) { return (heads + kHeads<T, D> - 1) / kHeads<T, D>; };
  const dim3 grid(blocks(n_heads) + blocks(2 * cache.n_kv_heads), (tokens.n_tokens + kRows - 1) / kRows);
  const size_t bytes = kRows * (kHeads<T, D> * cache.head_dim * sizeof(T) + 16);
  rope_and_cache_kernel<T, V, D><<<grid, threads(cache.head_dim, V), bytes, native(stream)>>>(
      static_cast<T*>(qkv), cache, tokens, n_heads);
}

}  // namespace

void rope_and_cache(void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads, DType dtype,
                    Stream& stream) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    auto run = cache.head_dim % 4 == 0 ? launch<T, 4, 0> : launch<T, 2, 0>;
    with_head_dim(cache.head_dim, [&](auto d) { run = launch<T, 4, d()>; });
    run(qkv, cache, tokens, n_heads, stream);
  });
  check_launch("rope_and_cache");
}

}  // namespace pipeinfer::kernels::cuda

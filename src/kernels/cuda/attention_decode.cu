// Attention of single tokens, rope and the cache's write included, at the speed at which the cache can be read.
//
// The work of a step is a list of items, one a token and kv head, each cut into units of about kUnit positions. The
// list's units are dealt out evenly, in order, to a fixed number of blocks (as in Stream-K, Osama et al. 2023,
// arXiv:2301.03598), whatever the contexts' lengths are: so the grid depends on nothing that changes from step to step,
// and a graph can hold it. An item whose units are in several blocks is joined by the last of them through the workspace.
//
// Each warp copies its own tiles of 32 positions into shared memory, the next tile's keys as soon as this tile's are used,
// and so the values: a warp has about 10 KB on their way at any time, and waits for no other warp but at an item's ends.
// Products run on tensor cores, so that what is left to issue is little beside what is left to read: up to 8 query heads of
// a kv head are the rows of one operand (with one head, the other rows are wasted, and cost nothing that is scarce).
#include "decode_work.cuh"
#include "launch.cuh"
#include "rotate.cuh"

namespace pipeinfer::kernels::cuda {
using namespace decode;

namespace {

constexpr int kBlocksPerSm = 3;  // of head_dim 100: 58 KB of shared memory each

/// Floats of an item's part in the workspace: for each head its sums, their largest score and their total.
__host__ __device__ int part_floats(int heads, int head_dim) { return heads * (head_dim + 2); }

template <typename T>
struct Problem {
  T* out;
  const T* qkv;
  KvLayer cache;
  TokenTable tokens;
  Rope rope;
  int n_heads;
  int heads;     // query heads that a block takes at once
  int sets;      // of them, a kv head
  float scale;   // times log2(e): powers of 2 replace powers of e
  int* arrived;  // [blocks], zero between launches: parts that are there of the item that block b begins
  // [blocks, 2, part_floats]: block b's part of an item that began before it, and of the one that goes on after it
  float* partial;
};

/// Sums over some positions relative to their largest score, in powers of 2.
struct Sums {
  float max = -INFINITY, total = 0, value = 0;

  __device__ void add(float other_max, float other_total, float other_value) {
    if (other_max == -INFINITY) return;  // no position
    const float new_max = fmaxf(max, other_max);
    const float factor = exp2f(max - new_max), other_factor = exp2f(other_max - new_max);
    total = total * factor + other_total * other_factor;
    value = value * factor + other_value * other_factor;
    max = new_max;
  }
};

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) decode_kernel(Problem<T> p) {
  using R = Rows<D>;
  using L = Layout<T, D>;
  constexpr int kGroups = R::kGroups, kSteps = (kGroups + 1) / 2, kHalf = D / 2;
  extern __shared__ uint4 shared[];
  __shared__ bool last;
  let_next_start();
  const KvLayer& cache = p.cache;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, matrix = lane / 8;
  const int group = p.n_heads / cache.n_kv_heads, items = cache.n_kv_heads * p.sets;  // of a row
  char* memory = reinterpret_cast<char*>(shared);
  char* keys = memory + 2 * warp * L::kTileBytes;
  char* values = keys + L::kTileBytes;
  T* q = reinterpret_cast<T*>(memory + L::kQ);
  T* fresh = reinterpret_cast<T*>(memory + L::kFresh);
  float* sums = reinterpret_cast<float*>(memory + L::kSums);
  float* maxima = sums + kWarps * p.heads * D;
  float* totals = maxima + kWarps * p.heads;

  Deal deal;
  Cursor at;
  begin(p.tokens, items, deal, at);
  if (at.left == 0) return;
  Tile<T, D> tile(cache, at, at.head / p.sets, 0);
  tile.fetch(keys, 0);
  tile.fetch(values, v_offset(cache));
  for (int i = threadIdx.x; i < kHeads * kGroups * 8; i += kThreads) q[i] = from_float<T>(0);
  if constexpr (D % 8 != 0)  // the rows' padding
    *reinterpret_cast<uint2*>(keys + lane * R::kStride + D * 2) = uint2{0, 0};
  wait_for_previous();
  __syncthreads();

  while (true) {
    const int kv_head = at.head / p.sets, set = at.head % p.sets,
              first_head = kv_head * group + set * p.heads;
    const int heads = min(p.heads, group - set * p.heads), position = at.context - 1;
    const bool newest = at.end == at.units;  // the new token's own position is among the block's
    const T* row = p.qkv + int64_t{at.row} * (p.n_heads + 2 * cache.n_kv_heads) * D;
    T* cached = key_row<T>(cache, at.blocks, position, kv_head);
    for (int item = threadIdx.x; item < (heads + newest) * kHalf; item += kThreads) {
      const int h = item / kHalf, i = item % kHalf;
      const bool is_key = h == heads;
      const float2 angle = rope_angle(p.rope, p.tokens, p.tokens.slot[at.row], position, i, D);
      const T* from = row + (is_key ? p.n_heads + kv_head : first_head + h) * D;
      const float a = to_float(from[i]), b = to_float(from[i + kHalf]);
      const T x = from_float<T>(a * angle.x - b * angle.y), y = from_float<T>(b * angle.x + a * angle.y);
      T* to = is_key ? fresh : q + h * kGroups * 8;
      to[i] = x;
      to[i + kHalf] = y;
      if (is_key && set == 0) {
        cached[i] = x;
        cached[i + kHalf] = y;
      }
    }
    for (int i = threadIdx.x; newest && i < D; i += kThreads) {
      fresh[D + i] = row[(p.n_heads + cache.n_kv_heads + kv_head) * D + i];
      if (set == 0) cached[v_offset(cache) + i] = fresh[D + i];
    }
    __syncthreads();

    // Row g = lane / 4 of the products is a head; a thread has it at columns 2 (lane % 4) and the next of each group of 8.
    uint32_t query[kSteps][2] = {};
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
      query[i / 2][i % 2] =
          *reinterpret_cast<const uint32_t*>(q + (lane / 4 * kGroups + i) * 8 + lane % 4 * 2);
    float max = -INFINITY, total = 0, sum[kGroups][2] = {};  // total: of this thread's positions
    Cursor ahead = at;
    for (int round = 0; round < at.rounds; ++round) {
      const int octets = tile.octets, pairs = tile.pairs(), n = at.context - tile.first;
      const int own_row = newest ? position - tile.first : -1;  // of the new token
      const bool has_own = own_row >= 0 && own_row < octets * kOctet;
      wait_copies<1>();
      __syncwarp();
      if (has_own) {
        for (int i = lane; i < D; i += 32) reinterpret_cast<T*>(keys + own_row * R::kStride)[i] = fresh[i];
        __syncwarp();
      }
      float score[kTile / 8][2] = {};
#pragma unroll
      for (int j = 0; j < kTile / 16; ++j) {
        if (j >= pairs) continue;
        const char* k = keys + (j * 16 + matrix / 2 * 8 + lane % 8) * R::kStride + matrix % 2 * 16;
#pragma unroll
        for (int i = 0; i < kGroups / 2; ++i) {
          uint32_t b[4];
          load_matrices(b, k + i * 32);
          mma_8x8x16<T>(score[2 * j], query[i], {b[0], b[1]});
          mma_8x8x16<T>(score[2 * j + 1], query[i], {b[2], b[3]});
        }
      }
      if constexpr (kGroups % 2 == 1) {
        uint32_t b[4];
        load_matrices(b, keys + lane * R::kStride + (kGroups - 1) * 16);
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) mma_8x8x8<T>(score[j], query[kSteps - 1][0], b[j]);
      }
      __syncwarp();  // the keys were used
      if (round + 1 == at.rounds) ahead.next(p.tokens, items);
      tile = ahead.left > 0
                 ? Tile<T, D>(cache, ahead, ahead.head / p.sets, round + 1 < at.rounds ? round + 1 : 0)
                 : Tile<T, D>();
      tile.fetch(keys, 0);

      uint32_t weight[kTile / 16][2] = {};
      if (octets > 0) {
        float new_max = max;
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const bool seen = j < octets && j * 8 + lane % 4 * 2 + e < n;
            score[j][e] = seen ? score[j][e] * p.scale : -INFINITY;
            new_max = fmaxf(new_max, score[j][e]);
          }
        }
        new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, 1));
        new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, 2));
        const float factor = exp2f(max - new_max);
        max = new_max;
        total *= factor;
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          sum[i][0] *= factor;
          sum[i][1] *= factor;
        }
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
          const float low = exp2f(score[j][0] - new_max), high = exp2f(score[j][1] - new_max);
          total += low + high;
          weight[j / 2][j % 2] = pack<T>(low, high);
        }
      }
      wait_copies<1>();
      __syncwarp();
      if (has_own) {
        for (int i = lane; i < D; i += 32)
          reinterpret_cast<T*>(values + own_row * R::kStride)[i] = fresh[D + i];
        __syncwarp();
      }
#pragma unroll
      for (int j = 0; j < kTile / 16; ++j) {
        if (j >= pairs) continue;
        const char* v = values + (j * 16 + matrix % 2 * 8 + lane % 8) * R::kStride + matrix / 2 * 16;
#pragma unroll
        for (int i = 0; i + 1 < kGroups; i += 2) {
          uint32_t b[4];
          load_matrices_transposed(b, v + i * 16);
          mma_8x8x16<T>(sum[i], weight[j], {b[0], b[1]});
          mma_8x8x16<T>(sum[i + 1], weight[j], {b[2], b[3]});
        }
      }
      if constexpr (kGroups % 2 == 1) {
        uint32_t b[4];
        load_matrices_transposed(b, values + lane * R::kStride + (kGroups - 1) * 16);
        if (pairs > 0) mma_8x8x16<T>(sum[kGroups - 1], weight[0], {b[0], b[1]});
        if (pairs > 1) mma_8x8x16<T>(sum[kGroups - 1], weight[1], {b[2], b[3]});
      }
      __syncwarp();  // the values were used
      tile.fetch(values, v_offset(cache));
    }

    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int h = warp * p.heads + lane / 4;
    if (lane / 4 < heads) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int column = i * 8 + lane % 4 * 2;
        if (column < D) store(sums + h * D + column, sum[i]);
      }
      if (lane % 4 == 0) {
        maxima[h] = max;
        totals[h] = total;
      }
    }
    __syncthreads();
    const int first_block = deal.block_of(at.start), last_block = deal.block_of(at.start + at.units - 1);
    const bool whole = first_block == last_block;
    const auto part = [&](int block) {
      return p.partial + (block * 2 + (block == first_block)) * part_floats(p.heads, D);
    };
    T* out = p.out + (int64_t{at.row} * p.n_heads + first_head) * D;
    for (int item = threadIdx.x; item < heads * D; item += kThreads) {
      const int h = item / D, i = item % D;
      Sums all;
      for (int w = 0; w < kWarps; ++w)
        all.add(maxima[w * p.heads + h], totals[w * p.heads + h], sums[(w * p.heads + h) * D + i]);
      if (whole) {
        out[item] = from_float<T>(all.value / all.total);
      } else {
        float* to = part(blockIdx.x) + h * (D + 2);
        to[i] = all.value;
        if (i == 0) {
          to[D] = all.max;
          to[D + 1] = all.total;
        }
      }
    }
    if (!whole) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        last = atomicAdd(p.arrived + first_block, 1) == last_block - first_block;
        if (last) p.arrived[first_block] = 0;  // for the next launch
      }
      __syncthreads();
      __threadfence();
      for (int item = threadIdx.x; last && item < heads * D; item += kThreads) {
        const int h = item / D, i = item % D;
        Sums all;
#pragma unroll 4
        for (int block = first_block; block <= last_block; ++block) {
          const float* from = part(block) + h * (D + 2);
          all.add(__ldcg(from + D), __ldcg(from + D + 1), __ldcg(from + i));
        }
        out[item] = from_float<T>(all.value / all.total);
      }
    }
    if (ahead.left == 0) return;
    at = ahead;
  }
}

int most_blocks(Device device) {
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device.index),
             "cudaDeviceGetAttribute");
  return processors * kBlocksPerSm;
}

/// Whether there is a kernel for this; then it is launched.
template <typename T, int D>
bool launch(Problem<T> p, int blocks, Stream& stream) {
  const auto kernel = decode_kernel<T, D>;
  if (code_version(kernel) < 80 || p.cache.block_size % kOctet != 0 || !aligned(16, p.cache.data))
    return false;
  const int64_t units =
      int64_t{p.tokens.n_single} * p.cache.n_kv_heads * p.sets * ((p.tokens.max_context + kUnit - 1) / kUnit);
  const int shared = Layout<T, D>::bytes(p.heads);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
             "decode_attention");
  launch_dependent(kernel, static_cast<unsigned>(std::min<int64_t>(blocks, units)), kThreads, shared, stream,
                   p);
  return true;
}

}  // namespace

size_t decode_workspace_bytes(int n_heads, int n_kv_heads, int head_dim, Device device) {
  const size_t floats = 2 * part_floats(std::min(n_heads / n_kv_heads, kHeads), head_dim);
  return most_blocks(device) * (sizeof(int) + floats * sizeof(float));
}

void decode_attention(void* out, void* qkv, const KvLayer& cache, const TokenTable& tokens, const Rope& rope,
                      int n_heads, float scale, void* workspace, DType dtype, Stream& stream) {
  const int group = n_heads / cache.n_kv_heads, heads = std::min(group, kHeads);
  const int blocks = most_blocks(stream.device());
  bool done = false;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (kHasMma<T>) {
      if (tokens.reference) return;
      const Problem<T> p{.out = static_cast<T*>(out),
                         .qkv = static_cast<const T*>(qkv),
                         .cache = cache,
                         .tokens = tokens,
                         .rope = rope,
                         .n_heads = n_heads,
                         .heads = heads,
                         .sets = (group + heads - 1) / heads,
                         .scale = scale * 1.44269504f,
                         .arrived = static_cast<int*>(workspace),
                         .partial = reinterpret_cast<float*>(static_cast<int*>(workspace) + blocks)};
      with_head_dim(cache.head_dim, [&](auto d) { done = launch<T, d()>(p, blocks, stream); });
    }
  });
  if (done) return;
  TokenTable single = tokens;
  single.n_tokens = tokens.n_single;
  cuda::rope_and_cache(qkv, cache, single, rope, n_heads, dtype, stream);
  cuda::attend_single(out, qkv, cache, single, n_heads, scale, dtype, stream);
}

}  // namespace pipeinfer::kernels::cuda

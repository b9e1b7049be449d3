// Attention of single tokens, rope and the cache's write included, at the speed at which the cache can be read.
//
// The work of a step is a list of items, one a token and kv head, each cut into units of about kUnit positions. The
// list's units are dealt out evenly, in order, to a fixed number of blocks (as in Stream-K, Osama et al. 2023,
// arXiv:2301.03598), whatever the contexts' lengths are: so the grid depends on nothing that changes from step to step,
// and a graph can hold it. An item whose units are in several blocks is joined by the last of them through the workspace.
//
// Each warp copies its own tiles of 32 positions into shared memory, the next tile's keys as soon as this tile's are used,
// and so the values: a warp has about 10 KB on their way at any time, and waits for no other warp but at an item's ends.
// In scores a lane is a position, in the sum of values four dimensions; the rows' stride keeps both free of bank conflicts.
#include "decode_work.cuh"
#include "launch.cuh"
#include "rotate.cuh"

namespace pipeinfer::kernels::cuda {
using namespace decode;

namespace {

constexpr int kBlocksPerSm = 3;  // of head_dim 100: 54 KB of shared memory each
constexpr int kMaxHeads = 8;     // query heads a block takes at once

/// Query heads that a block takes at once: a power of two, so that there are few kernels.
int heads_at_once(int group) { return group > 4 ? kMaxHeads : group > 2 ? 4 : group; }

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
  int sets;      // a kv head's query heads are taken in this many sets
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

/// N elements of K a load of shared memory, H query heads at once.
template <typename T, int N, int H>
__global__ void __launch_bounds__(kThreads, H < kMaxHeads ? kBlocksPerSm : 2) decode_kernel(Problem<T> p) {
  extern __shared__ uint4 shared[];
  __shared__ bool last;
  let_next_start();
  const KvLayer& cache = p.cache;
  const int d = cache.head_dim, half = d / 2, group = p.n_heads / cache.n_kv_heads;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int items = cache.n_kv_heads * p.sets;  // a row
  const Layout layout(H, d);
  char* memory = reinterpret_cast<char*>(shared);
  char* keys = memory + 2 * warp * layout.tile();
  char* values = keys + layout.tile();
  float* q = reinterpret_cast<float*>(memory + layout.q());              // [H, d]
  T* fresh = reinterpret_cast<T*>(memory + layout.fresh());              // [2, d]
  float* weights = reinterpret_cast<float*>(memory + layout.weights());  // [kWarps, H, kTile]
  float* sums = reinterpret_cast<float*>(memory + layout.sums());        // [kWarps, H, d]
  float* maxima = reinterpret_cast<float*>(memory + layout.maxima());    // [kWarps, H]
  float* totals = reinterpret_cast<float*>(memory + layout.totals());    // [kWarps, H]
  weights += warp * H * kTile;

  Deal deal;
  Cursor at;
  begin(p.tokens, items, deal, at);
  if (at.left == 0) return;
  Tile<T> tile(cache, at, at.head / p.sets, 0);
  tile.fetch(keys, 0, layout);
  tile.fetch(values, v_offset(cache), layout);
  wait_for_previous();

  while (true) {
    const int kv_head = at.head / p.sets, set = at.head % p.sets, first_head = kv_head * group + set * H;
    const int heads = min(H, group - set * H), position = at.context - 1;
    const bool newest = at.end == at.units;  // the new token's own position is among the block's
    const T* row = p.qkv + int64_t{at.row} * (p.n_heads + 2 * cache.n_kv_heads) * d;
    T* cached = key_row<T>(cache, at.blocks, position, kv_head);
    for (int item = threadIdx.x; item < (H + newest) * half; item += kThreads) {
      const int h = item / half, i = item % half;
      const bool is_key = h == H;
      if (!is_key && h >= heads) {
        q[h * d + i] = q[h * d + i + half] = 0;
        continue;
      }
      const float2 angle = rope_angle(p.rope, p.tokens, p.tokens.slot[at.row], position, i, d);
      const T* from = row + (is_key ? p.n_heads + kv_head : first_head + h) * d;
      const float a = to_float(from[i]), b = to_float(from[i + half]);
      const T x = from_float<T>(a * angle.x - b * angle.y), y = from_float<T>(b * angle.x + a * angle.y);
      if (is_key) {
        fresh[i] = x;
        fresh[i + half] = y;
        if (set == 0) {
          cached[i] = x;
          cached[i + half] = y;
        }
      } else {
        q[h * d + i] = to_float(x) * p.scale;
        q[h * d + i + half] = to_float(y) * p.scale;
      }
    }
    for (int i = threadIdx.x; newest && i < d; i += kThreads) {
      fresh[d + i] = row[(p.n_heads + cache.n_kv_heads + kv_head) * d + i];
      if (set == 0) cached[v_offset(cache) + i] = fresh[d + i];
    }
    __syncthreads();

    float max[H], total[H] = {}, sum[H][4] = {};  // total: of this lane's positions
#pragma unroll
    for (int h = 0; h < H; ++h) max[h] = -INFINITY;
    Cursor ahead = at;
    for (int round = 0; round < at.rounds; ++round) {
      const int n = min(tile.octets * kOctet, at.context - tile.first), octets = tile.octets;
      const int own_row = newest ? position - tile.first : -1;  // of the new token
      const bool has_own = own_row >= 0 && own_row < octets * kOctet;
      wait_copies<1>();
      __syncwarp();
      if (has_own) {
        for (int i = lane; i < d; i += 32) reinterpret_cast<T*>(keys + own_row * layout.stride)[i] = fresh[i];
        __syncwarp();
      }
      float score[H][2] = {};
      if (octets > 0) {
        const T* key = reinterpret_cast<const T*>(keys + lane * layout.stride);
#pragma unroll 4
        for (int i = 0; i < d; i += N) {
          float k[N];
          load(k, key + i);
#pragma unroll
          for (int h = 0; h < H; ++h) {
#pragma unroll
            for (int j = 0; j < N; j += 4) {
              float query[4];
              load(query, q + h * d + i + j);
#pragma unroll
              for (int e = 0; e < 4; ++e) score[h][e % 2] += query[e] * k[j + e];
            }
          }
        }
      }
      __syncwarp();  // the keys were used
      if (round + 1 == at.rounds) ahead.next(p.tokens, items);
      tile = ahead.left > 0
                 ? Tile<T>(cache, ahead, ahead.head / p.sets, round + 1 < at.rounds ? round + 1 : 0)
                 : Tile<T>();
      tile.fetch(keys, 0, layout);

      if (octets > 0) {
#pragma unroll
        for (int h = 0; h < H; ++h) {
          const float s = lane < n ? score[h][0] + score[h][1] : -INFINITY;
          float new_max = s;
#pragma unroll
          for (int offset = 16; offset > 0; offset /= 2)
            new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, offset));
          new_max = fmaxf(new_max, max[h]);
          const float factor = exp2f(max[h] - new_max), weight = lane < n ? exp2f(s - new_max) : 0;
          max[h] = new_max;
          total[h] = total[h] * factor + weight;
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[h][e] *= factor;
          weights[h * kTile + lane] = weight;
        }
      }
      wait_copies<1>();
      __syncwarp();
      if (has_own) {
        for (int i = lane; i < d; i += 32)
          reinterpret_cast<T*>(values + own_row * layout.stride)[i] = fresh[d + i];
        __syncwarp();
      }
      const char* value = values + min(lane, d / 4 - 1) * 4 * sizeof(T);
      for (int j = 0; j < octets * kOctet; j += kOctet) {
#pragma unroll
        for (int a = 0; a < kOctet; a += 4) {
          float v[4][4];
#pragma unroll
          for (int b = 0; b < 4; ++b)
            load(v[b], reinterpret_cast<const T*>(value + (j + a + b) * layout.stride));
#pragma unroll
          for (int h = 0; h < H; ++h) {
            float weight[4];
            load(weight, weights + h * kTile + j + a);
#pragma unroll
            for (int b = 0; b < 4; ++b) {
#pragma unroll
              for (int e = 0; e < 4; ++e) sum[h][e] += weight[b] * v[b][e];
            }
          }
        }
      }
      __syncwarp();  // the values were used
      tile.fetch(values, v_offset(cache), layout);
    }

#pragma unroll
    for (int h = 0; h < H; ++h) {
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) total[h] += __shfl_xor_sync(~0u, total[h], offset);
      if (lane * 4 < d) store(sums + (warp * H + h) * d + lane * 4, sum[h]);
      if (lane == 0) {
        maxima[warp * H + h] = max[h];
        totals[warp * H + h] = total[h];
      }
    }
    __syncthreads();
    const int first_block = deal.block_of(at.start), last_block = deal.block_of(at.start + at.units - 1);
    const bool whole = first_block == last_block;
    const auto part = [&](int block) {
      return p.partial + (block * 2 + (block == first_block)) * part_floats(H, d);
    };
    T* out = p.out + (int64_t{at.row} * p.n_heads + first_head) * d;
    for (int item = threadIdx.x; item < heads * d; item += kThreads) {
      const int h = item / d, i = item % d;
      Sums all;
      for (int w = 0; w < kWarps; ++w)
        all.add(maxima[w * H + h], totals[w * H + h], sums[(w * H + h) * d + i]);
      if (whole) {
        out[item] = from_float<T>(all.value / all.total);
      } else {
        float* to = part(blockIdx.x) + h * (d + 2);
        to[i] = all.value;
        if (i == 0) {
          to[d] = all.max;
          to[d + 1] = all.total;
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
      for (int item = threadIdx.x; last && item < heads * d; item += kThreads) {
        const int h = item / d, i = item % d;
        Sums all;
#pragma unroll 4
        for (int block = first_block; block <= last_block; ++block) {
          const float* from = part(block) + h * (d + 2);
          all.add(__ldcg(from + d), __ldcg(from + d + 1), __ldcg(from + i));
        }
        out[item] = from_float<T>(all.value / all.total);
      }
    }
    if (ahead.left == 0) return;
    at = ahead;
  }
}

template <typename T, int N>
auto kernel_of(int heads) {
  return heads == 1   ? decode_kernel<T, N, 1>
         : heads == 2 ? decode_kernel<T, N, 2>
         : heads == 4 ? decode_kernel<T, N, 4>
                      : decode_kernel<T, N, kMaxHeads>;
}

int most_blocks(Device device) {
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device.index),
             "cudaDeviceGetAttribute");
  return processors * kBlocksPerSm;
}

bool served(const KvLayer& cache, const TokenTable& tokens, DType dtype) {
  return !tokens.reference && dtype != DType::fp32 && cache.head_dim % 4 == 0 && cache.head_dim >= 64 &&
         cache.head_dim <= 128 && cache.block_size % kOctet == 0 && aligned(16, cache.data);
}

}  // namespace

size_t decode_workspace_bytes(int n_heads, int n_kv_heads, int head_dim, Device device) {
  const size_t floats = 2 * part_floats(heads_at_once(n_heads / n_kv_heads), head_dim);
  return most_blocks(device) * (sizeof(int) + floats * sizeof(float));
}

void decode_attention(void* out, void* qkv, const KvLayer& cache, const TokenTable& tokens, const Rope& rope,
                      int n_heads, float scale, void* workspace, DType dtype, Stream& stream) {
  const int group = n_heads / cache.n_kv_heads, heads = heads_at_once(group),
            blocks = most_blocks(stream.device());
  bool done = false;
  if (served(cache, tokens, dtype)) {
    with_type(dtype, [&](auto type) {
      using T = decltype(type);
      if constexpr (kHasMma<T>) {
        const auto kernel = cache.head_dim % 8 == 0 ? kernel_of<T, 8>(heads) : kernel_of<T, 4>(heads);
        if (code_version(kernel) < 80) return;
        Problem<T> p{.out = static_cast<T*>(out),
                     .qkv = static_cast<const T*>(qkv),
                     .cache = cache,
                     .tokens = tokens,
                     .rope = rope,
                     .n_heads = n_heads,
                     .sets = (group + heads - 1) / heads,
                     .scale = scale * 1.44269504f,
                     .arrived = static_cast<int*>(workspace),
                     .partial = reinterpret_cast<float*>(static_cast<int*>(workspace) + blocks)};
        const int64_t most =
            int64_t{tokens.n_single} * cache.n_kv_heads * p.sets * ((tokens.max_context + kUnit - 1) / kUnit);
        const int shared = Layout(heads, cache.head_dim).bytes();
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                   "decode_attention");
        launch_dependent(kernel, static_cast<unsigned>(std::min<int64_t>(blocks, most)), kThreads, shared,
                         stream, p);
        done = true;
      }
    });
  }
  if (done) return;
  TokenTable single = tokens;
  single.n_tokens = tokens.n_single;
  cuda::rope_and_cache(qkv, cache, single, rope, n_heads, dtype, stream);
  cuda::attend_single(out, qkv, cache, single, n_heads, scale, dtype, stream);
}

}  // namespace pipeinfer::kernels::cuda

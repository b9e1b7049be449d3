// Attention of single tokens, rope and the cache's write included, at the speed at which the cache can be read.
//
// prepare_attention has dealt out the list of octets of positions (decode_work.cuh) to the warps: so the grid depends on
// nothing that changes from step to step, and a graph can hold it. Each warp works on its own: it has copied a tile of 32
// positions into shared memory, and lets the next tile's keys come as soon as this one's are used, and so the values. An
// item that is one warp's is written at once; of others the warps of a block join their parts at the end, and where an item
// is in several blocks, the last of them joins the blocks' parts through the workspace.
//
// Products run on tensor cores, so that what is left to issue is little beside what is left to read: scores^T = K q^T and
// sums^T = V^T weights^T, whose columns are up to 8 query heads of a kv head (with one head, the others are wasted, and
// cost nothing that is scarce).
#include "decode_work.cuh"
#include "launch.cuh"

namespace pipeinfer::kernels::cuda {
using namespace decode;

namespace {

template <typename T>
struct Problem {
  T* out;
  const T* qkv;
  KvLayer cache;
  TokenTable tokens;
  Grouping grouping;
  DecodeWorkspace work;
  int n_heads;
  uint32_t reciprocal;  // 2^31 / octets of a block, rounded up: divides an octet's number
  float scale;          // times log2(e): powers of 2 replace powers of e
};

/// Octets [octet, octet + left) of the list that begins with this item; what is of the item and fits comes next.
struct Cursor {
  int row, head, octet, left, context;
  const int32_t* blocks;

  __device__ Cursor(const Share& share, const TokenTable& tokens)
      : row(share.row),
        head(share.head),
        octet(share.octet),
        left(share.left),
        context(share.context),
        blocks(blocks_of(tokens, share.slot)) {}
  __device__ int tile() const { return min(min(kTile / kOctet, left), octets_of(context) - octet); }
  __device__ int item() const { return row << 16 | head; }
  /// Whether the tile reaches the item's end.
  __device__ bool ends_item() const { return octet + tile() == octets_of(context); }
  __device__ Cursor next(const TokenTable& tokens, int items) const {
    Cursor after = *this;
    after.octet += tile();
    after.left -= tile();
    if (after.left > 0 && ends_item()) {
      after.octet = 0;
      if (++after.head == items) {
        after.head = 0;
        ++after.row;
        after.context = tokens.position[after.row] + 1;
        after.blocks = blocks_of(tokens, tokens.slot[after.row]);
      }
    }
    return after;
  }
};

/// The query heads of an item.
struct Heads {
  int kv_head, set, first, n;

  __device__ Heads(const Grouping& g, int head) {
    kv_head = g.sets == 1 ? head : head / g.sets;
    set = head - kv_head * g.sets;
    first = kv_head * g.group + set * g.heads;
    n = min(g.heads, g.group - set * g.heads);
  }
};

/// Where this lane's octet of a tile is in the cache, if it has one: K's.
template <typename T, int D>
__device__ inline const T* find_octet(const Problem<T>& p, const Cursor& at) {
  const int lane = threadIdx.x % 32;
  if (lane >= at.tile()) return nullptr;
  const KvLayer& cache = p.cache;
  const int octet = at.octet + lane, octets = cache.block_size / kOctet;
  const int index = static_cast<int>(uint64_t{static_cast<uint32_t>(octet)} * p.reciprocal >> 31);
  const int64_t head = int64_t{at.blocks[index]} * 2 * cache.n_kv_heads + Heads(p.grouping, at.head).kv_head;
  return static_cast<const T*>(cache.data) + (head * octets + octet - index * octets) * (kOctet * D);
}

/// Two neighbouring pairs of a row, rotated: elements c and c + 1, then c + D / 2 and the next.
template <typename T, int D>
__device__ inline void rotate(uint32_t (&to)[2], const T* from, const float (&angle)[4]) {
  float a[2], b[2];
  load(a, from);
  load(b, from + D / 2);
  to[0] = pack<T>(a[0] * angle[0] - b[0] * angle[1], a[1] * angle[2] - b[1] * angle[3]);
  to[1] = pack<T>(b[0] * angle[0] + a[0] * angle[1], b[1] * angle[2] + a[1] * angle[3]);
}

/// score^T += keys * query for a tile: score[j] are positions 16j to 16j + 15 (mma_16x8x16's c), query[i] dims 16i on.
template <typename T, int D>
__device__ inline void multiply_keys(float (&score)[2][4], const uint32_t (&query)[(D + 15) / 16][2],
                                     const char* keys) {
  using O = Octet<D>;
  const int lane = threadIdx.x % 32, matrix = lane / 8;
  const char* k = keys + matrix % 2 * O::kBytes + matrix / 2 * O::kGroupBytes + lane % 8 * 16;
#pragma unroll
  for (int i = 0; i < O::kGroups / 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t a[4];
      load_matrices(a, k + j * 2 * O::kBytes + i * 2 * O::kGroupBytes);
      mma_16x8x16<T>(score[j], a, query[i]);
    }
  }
  if constexpr (D % 16 != 0) {
    uint32_t a[4];  // an octet each
    if constexpr (O::kTail == 0) {
      load_matrices(a, keys + matrix * O::kBytes + (O::kGroups - 1) * O::kGroupBytes + lane % 8 * 16);
    } else {  // columns beyond meet zeros of the query
#pragma unroll
      for (int o = 0; o < 4; ++o)
        a[o] = *reinterpret_cast<const uint32_t*>(keys + o * O::kBytes + O::kTailAt + lane / 4 * 8 +
                                                  lane % 2 * 4);
    }
    mma_16x8x8<T>(score[0], {a[0], a[1]}, query[D / 16][0]);
    mma_16x8x8<T>(score[1], {a[2], a[3]}, query[D / 16][0]);
  }
}

/// sum^T += values^T * weights^T: sum[i] are dims 16i to 16i + 15, weight[o] the positions of octet o.
template <typename T, int D>
__device__ inline void multiply_values(float (&sum)[(D + 15) / 16][4], const uint32_t (&weight)[4],
                                       const char* values) {
  using O = Octet<D>;
  const int lane = threadIdx.x % 32, matrix = lane / 8;
  const char* v = values + matrix / 2 * O::kBytes + matrix % 2 * O::kGroupBytes + lane % 8 * 16;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < O::kGroups / 2; ++i) {
      uint32_t a[4];
      load_matrices_transposed(a, v + j * 2 * O::kBytes + i * 2 * O::kGroupBytes);
      mma_16x8x16<T>(sum[i], a, {weight[2 * j], weight[2 * j + 1]});
    }
  }
  if constexpr (D % 16 != 0) {
    uint32_t a[4];  // an octet each
    if constexpr (O::kTail == 0) {
      load_matrices_transposed(
          a, values + matrix * O::kBytes + (O::kGroups - 1) * O::kGroupBytes + lane % 8 * 16);
    } else {  // rows beyond make sums that nobody reads
#pragma unroll
      for (int o = 0; o < 4; ++o) {
        const auto* pair = reinterpret_cast<const uint16_t*>(values + o * O::kBytes + O::kTailAt) +
                           lane % 4 * 8 + lane / 4 % 4;
        a[o] = pair[0] | uint32_t{pair[4]} << 16;
      }
    }
    mma_16x8x16<T>(sum[D / 16], {a[0], 0, a[1], 0}, {weight[0], weight[1]});
    mma_16x8x16<T>(sum[D / 16], {a[2], 0, a[3], 0}, {weight[2], weight[3]});
  }
}

/// A new token's k or v (elements c, c + 1 and c + D / 2 and the next) into its row of an octet.
template <typename T, int D>
__device__ inline void put_row(T* octet, int position, const uint32_t (&row)[2]) {
  const int c = threadIdx.x % 32 * 2;
  if (c >= D / 2) return;
  *reinterpret_cast<uint32_t*>(octet + Octet<D>::offset(position, c)) = row[0];
  *reinterpret_cast<uint32_t*>(octet + Octet<D>::offset(position, c + D / 2)) = row[1];
}

/// The largest of a column's values, which 8 lanes hold; and their sum.
__device__ inline float column_max(float x) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}
__device__ inline float column_sum(float x) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

/// Element i of parts that are joined: of part(n), where that is not null, for all n < `count`.
struct Joined {
  float max = -INFINITY, total = 0, value = 0;

  template <int D, typename Part, typename Load>
  __device__ void join(int i, int heads, int count, Part part, Load load) {
    const int of_max = heads * D + i / D, of_total = of_max + heads;
#pragma unroll 4
    for (int n = 0; n < count; ++n) {
      if (const float* from = part(n)) max = fmaxf(max, load(from + of_max));
    }
#pragma unroll 4
    for (int n = 0; n < count; ++n) {
      const float* from = part(n);
      if (!from) continue;
      const float factor = exp2f(load(from + of_max) - max);
      total += factor * load(from + of_total);
      value += factor * load(from + i);
    }
  }
};

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) decode_kernel(Problem<T> p) {
  using O = Octet<D>;
  constexpr int kColumns = (D + 15) / 16;  // of 16 dims
  extern __shared__ uint4 shared[];
  __shared__ Barrier landed[kWarps][2];  // tiles of K, of V
  __shared__ int part_item[kWarps * 2];  // of the parts that a warp has left: its first and its last, or -1
  __shared__ int final_item;             // of the block
  __shared__ bool completes[2];          // the block's part of its first, final item is the last
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4,
            block = static_cast<int>(blockIdx.x);
  const Share share = p.work.shares[block * kWarps + warp], lead = p.work.shares[block * kWarps];
  if (share.last_block < 0) return;
  const Layout layout{p.grouping.heads, D};
  char* const memory = reinterpret_cast<char*>(shared);
  char* const keys = memory + 2 * warp * layout.tile();
  char* const values = keys + layout.tile();
  char* const queries = memory + layout.queries() + warp * p.grouping.heads * layout.query_stride();
  const auto part = [&](int slot) {  // 2 * warp + (0 or 1)
    const int of_warp = slot / 2;
    return reinterpret_cast<float*>(slot % 2 == 1 ? memory + 2 * of_warp * layout.tile()
                                                  : memory + layout.parts() +
                                                        of_warp * part_floats(layout.heads, D) * 4);
  };

  Cursor at(share, p.tokens);
  const T* octet = find_octet<T, D>(p, at);
  if (lane == 0) {
    for (Barrier& barrier : landed[warp]) init_barrier(&barrier, copy_arrivals());
    part_item[2 * warp] = part_item[2 * warp + 1] = -1;
  }
  // What a copy never fills must be no NaN: its weights are 0.
  for (int i = lane; i < layout.tile() / 16; i += 32) reinterpret_cast<uint4*>(values)[i] = uint4{0, 0, 0, 0};
  order_before_copies();
  __syncwarp();
  if (at.left > 0) {
    copy_rows(keys, O::kBytes, octet, O::kBytes, &landed[warp][0]);
    copy_rows(values, O::kBytes, octet ? octet + v_offset(p.cache) : octet, O::kBytes, &landed[warp][1]);
  }
  const int c = lane * 2;  // of the pairs that this lane rotates
  float angle[4] = {};
  if (c < D / 2) load(angle, p.tokens.angle + int64_t{at.row} * D + 2 * c);
  wait_for_previous();

  // A thread has rows g = lane / 4 and g + 8 of each product, at the columns of heads 2t and 2t + 1.
  uint32_t query[kColumns][2], key[2], value[2];
  float max[2], total[2], sum[kColumns][4];
  bool begins = true;
  int first_octet = at.octet;  // of the warp's share of the item
  int parity = 0;
  while (at.left > 0) {
    const Heads heads(p.grouping, at.head);
    if (begins) {
      const T* row = p.qkv + int64_t{at.row} * (p.n_heads + 2 * p.cache.n_kv_heads) * D + c;
      if (c < D / 2) {
        const T* of_kv = row + (p.n_heads + heads.kv_head) * D;
        rotate<T, D>(key, of_kv, angle);
        of_kv += p.cache.n_kv_heads * D;
        value[0] = *reinterpret_cast<const uint32_t*>(of_kv);
        value[1] = *reinterpret_cast<const uint32_t*>(of_kv + D / 2);
        for (int h0 = 0; h0 < heads.n; h0 += 4) {
          uint32_t rotated[4][2];
#pragma unroll
          for (int h = 0; h < 4; ++h) {
            if (h0 + h < heads.n) rotate<T, D>(rotated[h], row + (heads.first + h0 + h) * D, angle);
          }
#pragma unroll
          for (int h = 0; h < 4; ++h) {
            if (h0 + h >= heads.n) continue;
            char* to = queries + (h0 + h) * layout.query_stride() + c * 2;
            *reinterpret_cast<uint32_t*>(to) = rotated[h][0];
            *reinterpret_cast<uint32_t*>(to + D) = rotated[h][1];
          }
        }
      }
      __syncwarp();
      const char* column = queries + min(lane / 4, heads.n - 1) * layout.query_stride() + t * 4;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int dim = i * 16 + j * 8;
          query[i][j] = dim + 2 * t < D ? *reinterpret_cast<const uint32_t*>(column + dim * 2) : 0;
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][e] = 0;
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        max[e] = -INFINITY;
        total[e] = 0;
      }
    }

    const Cursor after = at.next(p.tokens, p.grouping.items);
    const bool ends = after.left == 0 || after.item() != at.item();  // the warp's share of the item
    const bool newest = at.ends_item();                              // the new token's own position is here
    const T* const ahead = find_octet<T, D>(p, after);
    const int n = min(at.tile() * kOctet, at.context - at.octet * kOctet);  // positions

    wait_phase(&landed[warp][0], parity);
    T* own = reinterpret_cast<T*>(keys) + (at.tile() - 1) * (kOctet * D);  // the octet of the new token
    if (newest) {
      put_row<T, D>(own, n - 1, key);
      order_before_copies();
      __syncwarp();
    }
    float score[2][4] = {};
    multiply_keys<T, D>(score, query, keys);
    __syncwarp();  // the keys were used
    if (after.left > 0) copy_rows(keys, O::kBytes, ahead, O::kBytes, &landed[warp][0]);

    uint32_t weight[4];
    if (n < kTile) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (j * 16 + e / 2 * 8 + lane / 4 >= n) score[j][e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float largest = fmaxf(fmaxf(score[0][e], score[0][e + 2]), fmaxf(score[1][e], score[1][e + 2]));
      const float new_max = fmaxf(max[e], column_max(largest) * p.scale);
      const float factor = exp2f(max[e] - new_max);
      max[e] = new_max;
      total[e] *= factor;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        sum[i][e] *= factor;
        sum[i][e + 2] *= factor;
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int r = 0; r < 4; r += 2) {
          score[j][r + e] = exp2f(score[j][r + e] * p.scale - new_max);
          total[e] += score[j][r + e];
        }
      }
    }
#pragma unroll
    for (int o = 0; o < 4; ++o)
      weight[o] = transpose(pack<T>(score[o / 2][o % 2 * 2], score[o / 2][o % 2 * 2 + 1]));

    wait_phase(&landed[warp][1], parity);
    parity ^= 1;
    if (newest) {
      own = reinterpret_cast<T*>(values) + (at.tile() - 1) * (kOctet * D);
      const int last = (n - 1) % kOctet;
      // Behind it the cache may hold anything, NaN too.
      for (int i = lane; i < D / 4 * kOctet; i += 32) {
        if (i % kOctet > last)
          *reinterpret_cast<uint2*>(own + O::offset(i % kOctet, i / kOctet * 4)) = uint2{0, 0};
      }
      put_row<T, D>(own, last, value);
      order_before_copies();
      __syncwarp();
    }
    multiply_values<T, D>(sum, weight, values);
    if (newest && heads.set == 0) {
      const auto address = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(octet), at.tile() - 1);
      T* cached = reinterpret_cast<T*>(address);
      put_row<T, D>(cached, n - 1, key);
      put_row<T, D>(cached + v_offset(p.cache), n - 1, value);
    }
    __syncwarp();  // the values were used
    if (after.left > 0)
      copy_rows(values, O::kBytes, ahead ? ahead + v_offset(p.cache) : ahead, O::kBytes, &landed[warp][1]);

    if (ends) {
      if (after.left > 0 && c < D / 2) load(angle, p.tokens.angle + int64_t{after.row} * D + 2 * c);
      const bool whole = newest && first_octet == 0;
      const int slot = 2 * warp + (after.left == 0);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int h = 2 * t + e;
        const float all = column_sum(total[e]);
        if (h >= heads.n) continue;
        const float factor = 1 / all;
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int dim = i * 16 + r * 8 + lane / 4;
            if (dim >= D) continue;
            const float x = sum[i][r * 2 + e];
            if (whole)
              p.out[(int64_t{at.row} * p.n_heads + heads.first + h) * D + dim] = from_float<T>(x * factor);
            else
              part(slot)[h * D + dim] = x;
          }
        }
        if (!whole && lane / 4 == 0) {
          part(slot)[heads.n * D + h] = max[e];
          part(slot)[heads.n * (D + 1) + h] = all;
        }
      }
      if (!whole && lane == 0) part_item[slot] = at.item();
      first_octet = 0;
    }
    begins = ends;
    octet = ahead;
    at = after;
  }

  if (warp == kWarps - 1 && lane == 0) final_item = at.item();
  __syncthreads();
  // Each warp that has a part of an item joins some elements of all the block's parts of it. Where the item is in other
  // blocks too, that makes the block's part.
  const int first_item = lead.row << 16 | lead.head, item_of_lane = part_item[lane % (kWarps * 2)];
  const auto first_block = [&](int item) { return item == first_item ? lead.first_block : block; };
  const auto last_block = [&](int item) { return item == final_item ? lead.last_block : block; };
  const auto of_block = [&](int other, int item) {
    return p.work.partial + (other * 2 + (other == first_block(item))) * part_floats(layout.heads, D);
  };
  const auto out_of = [&](int item, const Heads& heads) {
    return p.out + (int64_t{item >> 16} * p.n_heads + heads.first) * D;
  };
  for (int slot = 2 * warp; slot < 2 * warp + 2; ++slot) {
    const int item = part_item[slot];
    if (item < 0) continue;
    const unsigned parts = __ballot_sync(~0u, item_of_lane == item) & ((1 << kWarps * 2) - 1);
    const int count = __popc(parts), rank = __popc(parts & ((1u << slot) - 1));
    const Heads heads(p.grouping, item & 0xffff);
    const bool whole = first_block(item) == last_block(item);
    const auto of_warp = [&](int w) -> const float* {
      const unsigned which = parts >> 2 * w & 3;
      return which == 0 ? nullptr : part(2 * w + static_cast<int>(which >> 1));
    };
    for (int i = rank * 32 + lane; i < heads.n * D; i += count * 32) {
      Joined all;
      all.join<D>(i, heads.n, kWarps, of_warp, [](const float* from) { return *from; });
      if (whole) {
        out_of(item, heads)[i] = from_float<T>(all.value / all.total);
      } else {
        float* to = of_block(block, item);
        to[i] = all.value;
        if (i % D == 0) {
          to[heads.n * D + i / D] = all.max;
          to[heads.n * (D + 1) + i / D] = all.total;
        }
      }
    }
  }
  if (lead.first_block == block && lead.last_block == block) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x < 2) {
    const int item = threadIdx.x == 0 ? first_item : final_item;
    const int first = first_block(item), others = last_block(item) - first;
    const bool shared_item = others > 0 && !(threadIdx.x == 1 && first_item == final_item);
    completes[threadIdx.x] = shared_item && atomicAdd(p.work.arrived + first, 1) == others;
    if (completes[threadIdx.x]) p.work.arrived[first] = 0;  // for the next launch
  }
  __syncthreads();
  __threadfence();
  for (int end = 0; end < 2; ++end) {
    if (!completes[end]) continue;
    const int item = end == 0 ? first_item : final_item, first = first_block(item);
    const Heads heads(p.grouping, item & 0xffff);
    for (int i = threadIdx.x; i < heads.n * D; i += kThreads) {
      Joined all;
      all.join<D>(
          i, heads.n, last_block(item) - first + 1, [&](int n) { return of_block(first + n, item); },
          [](const float* from) { return __ldcg(from); });
      out_of(item, heads)[i] = from_float<T>(all.value / all.total);
    }
  }
}

/// Whether there is a kernel for this; then it is launched.
template <typename T, int D>
bool launch(const Problem<T>& p, int blocks, Stream& stream) {
  const auto kernel = decode_kernel<T, D>;
  if (code_version(kernel) < 80 || !aligned(16, p.cache.data)) return false;
  const int shared = Layout{p.grouping.heads, D}.bytes();
  allow_shared(kernel, shared);
  launch_dependent(kernel, static_cast<unsigned>(blocks), kThreads, shared, stream, p);
  return true;
}

}  // namespace

int decode::most_blocks(Device device, const Grouping& grouping, int head_dim) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device.index), "cudaDeviceGetAttribute");
    return value;
  };
  constexpr int kReserved = 1 << 10;  // bytes of a block that are not ours
  const int shared = Layout{grouping.heads, head_dim}.bytes() + kReserved;
  const int resident =
      std::clamp(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / shared, 1, kBlocksPerSm);
  return attribute(cudaDevAttrMultiProcessorCount) * resident;
}

size_t decode_workspace_bytes(int n_heads, int n_kv_heads, int head_dim, Device device) {
  const Grouping grouping(n_heads, n_kv_heads);
  return DecodeWorkspace::bytes(most_blocks(device, grouping, head_dim), grouping.heads, head_dim);
}

void decode_attention(void* out, void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                      float scale, void* workspace, DType dtype, Stream& stream) {
  const Grouping grouping(n_heads, cache.n_kv_heads);
  const int most = most_blocks(stream.device(), grouping, cache.head_dim);
  bool done = false;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (kHasMma<T>) {
      if (tokens.reference) return;
      const Problem<T> p{
          .out = static_cast<T*>(out),
          .qkv = static_cast<const T*>(qkv),
          .cache = cache,
          .tokens = tokens,
          .grouping = grouping,
          .work = DecodeWorkspace(workspace, most),
          .n_heads = n_heads,
          .reciprocal = static_cast<uint32_t>((int64_t{1} << 31) / (cache.block_size / kOctet)) + 1,
          .scale = scale * 1.44269504f};
      with_head_dim(cache.head_dim,
                    [&](auto d) { done = launch<T, d()>(p, grid_blocks(tokens, grouping, most), stream); });
    }
  });
  if (done) return;
  TokenTable single = tokens;
  single.n_tokens = tokens.n_single;
  cuda::rope_and_cache(qkv, cache, single, n_heads, dtype, stream);
  cuda::attend_single(out, qkv, cache, single, n_heads, scale, dtype, stream);
}

}  // namespace pipeinfer::kernels::cuda

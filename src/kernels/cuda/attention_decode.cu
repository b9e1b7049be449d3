// Attention of single tokens, rope and the cache's write included, at the speed at which the cache can be read.
//
// prepare_attention has dealt out the list of octets of positions (decode_work.cuh) to the warps: so the grid depends on
// nothing that changes from step to step, and a graph can hold it. Each warp works on its own: it has a tile of 64
// positions in shared memory, and lets the next one's keys come as soon as this one's are used, and so the values. An
// item that is one warp's is written at once; of others the warps of a block join their parts at the end, and where an item
// is in several blocks, the last of them joins the blocks' parts through the workspace.
//
// Products run on tensor cores, so that what is left to issue is little beside what is left to read: scores^T = K q^T and
// sums^T = V^T weights^T, whose columns are up to 8 query heads of a kv head (with one head, the others are wasted, and
// cost nothing that is scarce).
#include "decode_tile.cuh"
#include "launch.cuh"

namespace pipeinfer::kernels::cuda {
using namespace decode;

namespace {

/// A lane's piece of a tile: the octets of it that are in one block of the cache.
template <typename T>
struct Piece {
  T* keys;
  int at, octets;  // its first in the tile; none: 0
};

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

  __device__ int octets_of_block() const { return cache.block_size / kOctet; }
  /// The block, of its sequence, where this lane's piece of a tile is, if it has one.
  __device__ int block_index(const Cursor& at) const {
    const auto first = uint64_t{static_cast<uint32_t>(at.octet)} * reciprocal >> 31;
    return static_cast<int>(first) + static_cast<int>(threadIdx.x) % 32;
  }
  /// And its number in the cache.
  __device__ int block(const Cursor& at) const {
    const int index = block_index(at);
    return index * octets_of_block() < at.octet + at.tile() ? at.blocks[index] : 0;
  }
  __device__ Piece<T> piece(const Cursor& at, int block) const {
    const int octets = octets_of_block(), begin = block_index(at) * octets;
    const int first = max(begin, at.octet), end = min(begin + octets, at.octet + at.tile());
    const int64_t head = int64_t{block} * 2 * cache.n_kv_heads + Heads(grouping, at.head).kv_head;
    const int64_t octet = head * octets + first - begin;
    return {static_cast<T*>(cache.data) + octet * kOctet * cache.head_dim, first - at.octet,
            max(end - first, 0)};
  }
};

/// Copies of a tile's keys or, `offset` elements further on, of its values.
template <typename T, int D>
__device__ inline void fetch(char* to, const Piece<T>& piece, int64_t offset, int tile, Barrier* landed) {
  constexpr int kBytes = Octet<D>::kBytes;
  copy_pieces(to + piece.at * kBytes, piece.keys + offset, piece.octets * kBytes, tile * kBytes, landed);
}

/// Of a token's row of qkv, what an item needs, as this thread has it: its pairs of k, of v and of up to 4 queries.
template <typename T, int D>
struct Row {
  const T* at;
  Pairs key{}, value{}, query[4]{};
  float angle[4]{};

  __device__ void load_queries(const Heads& heads, int first) {
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      if (first + h < heads.n) load_pairs<T, D>(query[h], at + (heads.first + first + h) * D);
    }
  }
  __device__ void load_all(const Problem<T>& p, const Cursor& item) {
    const Heads heads(p.grouping, item.head);
    const int c = threadIdx.x % 32 * 2;  // see Pairs
    if (c >= D / 2) return;
    at = p.qkv + int64_t{item.row} * (p.n_heads + 2 * p.cache.n_kv_heads) * D + c;
    load_pairs<T, D>(key, at + (p.n_heads + heads.kv_head) * D);
    load_pairs<T, D>(value, at + (p.n_heads + p.cache.n_kv_heads + heads.kv_head) * D);
    load_queries(heads, 0);
    load(angle, p.tokens.angle + int64_t{item.row} * D + 2 * c);
  }
};

template <typename T, int D>
__global__ void __maxnreg__(kRegisters) decode_kernel(Problem<T> p) {
  constexpr int kOctetElements = kOctet * D;
  extern __shared__ Line shared[];
  __shared__ Barrier landed[kWarps][2];  // tiles of K, of V
  __shared__ int part_item[kWarps * 2];  // of the parts that a warp leaves, its first and its last; -1: none
  __shared__ int final_item;             // of the block
  __shared__ bool completes[2];          // the block's part of its first, final item is the last
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, block = static_cast<int>(blockIdx.x);
  const Share share = p.work.shares[block * kWarps + warp], lead = p.work.shares[block * kWarps];
  if (share.last_block < 0) return;
  const Layout layout{p.grouping.heads, D};
  char* const memory = reinterpret_cast<char*>(shared);
  char* const keys = memory + 2 * warp * layout.tile();
  char* const values = keys + layout.tile();
  char* const queries = memory + layout.queries() + warp * layout.heads * layout.query_stride();
  const auto part = [&](int slot) {  // 2 * warp, or with 1 more the warp's last one, where its keys were
    return reinterpret_cast<float*>(
        memory + (slot % 2 == 1 ? slot / 2 * 2 * layout.tile()
                                : layout.parts() + slot / 2 * part_floats(layout.heads, D) * 4));
  };

  // Loads are started a tile before they are needed: while the memory is busy with tiles, they take long.
  Cursor at(share, p.tokens), after = at.next(p.tokens, p.grouping.items);
  Piece<T> piece = p.piece(at, p.block(at));
  int block_ahead = p.block(after);
  if (lane == 0) {
    init_barrier(&landed[warp][0], copy_arrivals());
    init_barrier(&landed[warp][1], copy_arrivals());
    part_item[2 * warp] = part_item[2 * warp + 1] = -1;
  }
  // What no copy fills must be no NaN: its weights are 0.
#pragma unroll
  for (int i = 0; i < layout.tile() / 16; i += 32) {
    if (i + lane < layout.tile() / 16) reinterpret_cast<uint4*>(values)[i + lane] = uint4{0, 0, 0, 0};
  }
  order_before_copies();
  __syncwarp();
  if (at.left > 0) {
    fetch<T, D>(keys, piece, 0, at.tile(), &landed[warp][0]);
    fetch<T, D>(values, piece, v_offset(p.cache), at.tile(), &landed[warp][1]);
  }
  wait_for_previous();
  Row<T, D> row;
  if (at.left > 0) row.load_all(p, at);

  for (int parity = 0, first_octet = at.octet; at.left > 0; first_octet = 0) {  // shares of items
    const Heads heads(p.grouping, at.head);
    const int c = lane * 2;  // see Pairs
    if (c < D / 2) {
      for (int first = 0; first < heads.n; first += 4) {
        if (first > 0) row.load_queries(heads, first);
#pragma unroll
        for (int h = 0; h < 4; ++h) {
          if (first + h >= heads.n) continue;
          rotate<T>(row.query[h], row.angle);
          char* to = queries + (first + h) * layout.query_stride() + c * 2;
          *reinterpret_cast<uint32_t*>(to) = row.query[h][0];
          *reinterpret_cast<uint32_t*>(to + D) = row.query[h][1];
        }
      }
      rotate<T>(row.key, row.angle);
    }
    const Pairs key{row.key[0], row.key[1]}, value{row.value[0], row.value[1]};
    __syncwarp();
    uint32_t query[(D + 15) / 16][2];
    const char* column = queries + min(lane / 4, heads.n - 1) * layout.query_stride() + lane % 4 * 4;
#pragma unroll
    for (int dim = 0; dim < (D + 15) / 16 * 16; dim += 8)
      query[dim / 16][dim % 16 / 8] =
          dim + lane % 4 * 2 < D ? *reinterpret_cast<const uint32_t*>(column + dim * 2) : 0;

    Softmax<T, D> softmax;
    for (bool ends = false; !ends; parity ^= 1) {  // tiles
      const Cursor later = after.next(p.tokens, p.grouping.items);
      const Piece<T> ahead = p.piece(after, block_ahead);
      block_ahead = p.block(later);
      ends = after.left == 0 || after.octet == 0;
      if (ends && after.left > 0) row.load_all(p, after);
      const int n = min(at.tile() * kOctet, at.context - at.octet * kOctet);  // positions
      const bool newest = at.ends_item();  // the new token's position is here, the tile's last
      const int last_octet = (at.tile() - 1) * kOctetElements;

      wait_phase(&landed[warp][0], parity);
      if (newest) {
        put_row<T, D>(reinterpret_cast<T*>(keys) + last_octet, n - 1, key);
        if (after.left > 0) order_before_copies();
        __syncwarp();
      }
      float score[kTile / 2][4];
      multiply_keys<T, D>(score, query, keys);
      __syncwarp();  // the keys were used
      if (after.left > 0) fetch<T, D>(keys, ahead, 0, after.tile(), &landed[warp][0]);

      uint32_t weight[kTile];
      softmax.weigh(weight, score, n, p.scale, layout.heads > 1);

      wait_phase(&landed[warp][1], parity);
      if (newest) {
        T* last = reinterpret_cast<T*>(values) + last_octet;
        put_row<T, D>(last, n - 1, value);
        clear_behind<T, D>(last, n - 1);  // the cache may hold anything there, NaN too
        if (after.left > 0) order_before_copies();
        __syncwarp();
      }
      multiply_values<T, D>(softmax.sum, weight, values);
      __syncwarp();  // the values were used
      if (after.left > 0) fetch<T, D>(values, ahead, v_offset(p.cache), after.tile(), &landed[warp][1]);

      if (ends) {
        if (newest && heads.set == 0) {
          const int lane_of_last = 31 - __clz(static_cast<int>(__ballot_sync(~0u, piece.octets > 0)));
          T* const last = reinterpret_cast<T*>(
              __shfl_sync(~0u, reinterpret_cast<unsigned long long>(piece.keys), lane_of_last) +
              __shfl_sync(~0u, piece.octets - 1, lane_of_last) * kOctetElements * sizeof(T));
          put_row<T, D>(last, n - 1, key);
          put_row<T, D>(last + v_offset(p.cache), n - 1, value);
        }
        softmax.finish();
        if (newest && first_octet == 0) {
          softmax.write(p.out + (int64_t{at.row} * p.n_heads + heads.first) * D, heads.n);
        } else {
          const int slot = 2 * warp + (after.left == 0);
          softmax.write_part(part(slot), heads.n);
          if (lane == 0) part_item[slot] = at.item();
        }
      }
      piece = ahead;
      at = after;
      after = later;
    }
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
  const int shared = Layout{p.grouping.heads, D}.bytes();
  if (code_version(kernel) < 80 || !aligned(16, p.cache.data) ||
      shared > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device()))
    return false;
  allow_shared(kernel, shared);
  launch_dependent(kernel, blocks, kThreads, shared, stream, p);
  return true;
}

}  // namespace

int decode::most_blocks(Device device, const Grouping& grouping, int head_dim) {
  constexpr int kReserved = 1 << 10;  // bytes of shared memory that every block takes beside its own
  const int shared = Layout{grouping.heads, head_dim}.bytes() + kReserved;
  const int resident =
      std::clamp(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) / shared, 1, kBlocksPerSm);
  return attribute(cudaDevAttrMultiProcessorCount, device) * resident;
}

int decode::grid_blocks(const TokenTable& tokens, const Grouping& grouping, int most, Device device) {
  const int64_t pieces = int64_t{tokens.n_single} * grouping.items * pieces_of(octets_of(tokens.max_context));
  // Where not every block would have a piece, a multiprocessor has one block, and room for one of the next product, whose
  // first weights come meanwhile.
  const int blocks = pieces < most ? std::min(most, attribute(cudaDevAttrMultiProcessorCount, device)) : most;
  return static_cast<int>(std::min<int64_t>(blocks, pieces));
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
      const int blocks = grid_blocks(tokens, grouping, most, stream.device());
      with_head_dim(cache.head_dim, [&](auto d) { done = launch<T, d()>(p, blocks, stream); });
    }
  });
  if (done) return;
  TokenTable single = tokens;
  single.n_tokens = tokens.n_single;
  cuda::rope_and_cache(qkv, cache, single, n_heads, dtype, stream);
  cuda::attend_single(out, qkv, cache, single, n_heads, scale, dtype, stream);
}

}  // namespace pipeinfer::kernels::cuda

// The work list of decode attention: its items, one a token and kv head (or set of a kv head's query heads), each a list
// of octets of positions; how prepare_attention deals them out to the warps of decode_attention, and what lies where.
#pragma once

#include <algorithm>

#include "kv.cuh"
#include "rows.cuh"

namespace pipeinfer::kernels::cuda::decode {

inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * 32;
inline constexpr int kRegisters = 192;  // of a thread: a block fits beside one of a tiled product
inline constexpr int kBlocksPerSm = 2;  // of head_dim 100: 105 KB of shared memory each
inline constexpr int kTile = 8;         // octets: what a warp takes at a time
inline constexpr int kHeads = 8;        // query heads that a block takes at most: columns of a product
/// Octets: an item is cut no finer where its pieces are too few to fill the GPU.
inline constexpr int kPiece = kWarps * kTile;

__host__ __device__ inline int octets_of(int context) { return (context + kOctet - 1) / kOctet; }
__host__ __device__ inline int pieces_of(int octets) { return (octets + kPiece - 1) / kPiece; }

/// How query heads are taken together.
struct Grouping {
  int group;  // query heads of a kv head
  int heads;  // that a block takes at once
  int sets;   // of them, a kv head
  int items;  // of a token: kv heads * sets

  Grouping(int n_heads, int n_kv_heads)
      : group(n_heads / n_kv_heads),
        heads(std::min(group, kHeads)),
        sets((group + heads - 1) / heads),
        items(n_kv_heads * sets) {}
};

/// What a warp of decode_attention does: `left` octets, from `octet` of an item on. It may go on with later items.
struct alignas(16) Share {
  int row, head;      // the first item: token; kv head * sets + set
  int octet, left;    // none left in the whole block where last_block is -1
  int context, slot;  // of the row
  int first_block;    // of those that share the item that this *block* begins with
  int last_block;     // of those that share the item that it ends with
};

/// An item's part in a workspace or in shared memory: sums [heads, D], then for each head the largest score and the total.
__host__ __device__ inline int part_floats(int heads, int head_dim) { return heads * (head_dim + 2); }

/// decode_attention's workspace, for a grid of at most `blocks`.
struct DecodeWorkspace {
  int* arrived;   // [blocks], zero between launches: parts that are there of the item that block b begins
  Share* shares;  // [blocks, kWarps]
  float*
      partial;  // [blocks, 2, part]: block b's part of an item that began before it, and of one that goes on

  DecodeWorkspace(void* data, int blocks)
      : arrived(static_cast<int*>(data)),
        shares(reinterpret_cast<Share*>(arrived + (blocks + 3) / 4 * 4)),
        partial(reinterpret_cast<float*>(shares + blocks * kWarps)) {}
  static size_t bytes(int blocks, int heads, int head_dim) {
    return (blocks + 3) / 4 * 4 * sizeof(int) + blocks * kWarps * sizeof(Share) +
           2 * blocks * part_floats(heads, head_dim) * sizeof(float);
  }
};

/// Where things lie in a block's shared memory, in bytes: a tile of K and one of V of each warp, and what follows. A part
/// that is a warp's last takes its tile of K.
struct Layout {
  int heads, head_dim;

  __host__ __device__ int tile() const { return kTile * kOctet * head_dim * 2; }
  __host__ __device__ int query_stride() const { return ((head_dim + 7) / 8 | 1) * 16; }
  __host__ __device__ int queries() const { return 2 * kWarps * tile(); }
  __host__ __device__ int parts() const { return queries() + kWarps * heads * query_stride(); }
  __host__ __device__ int bytes() const { return parts() + kWarps * part_floats(heads, head_dim) * 4; }
};

/// Most blocks of a launch: as many as are resident at once.
int most_blocks(Device device, const Grouping& grouping, int head_dim);
/// Of the launch for these tokens, whatever their positions are.
int grid_blocks(const TokenTable& tokens, const Grouping& grouping, int most, Device device);

}  // namespace pipeinfer::kernels::cuda::decode

// The work list of decode attention: its items, one a token and kv head (or set of a kv head's query heads), each cut into
// units of about kUnit positions; how a block walks through its share of the units, and how a warp brings their
// keys and values into shared memory.
#pragma once

#include "kv.cuh"
#include "rows.cuh"

namespace pipeinfer::kernels::cuda::decode {

inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * 32;
inline constexpr int kOctet = 8;   // positions: always in one KV block, and 16-byte aligned there
inline constexpr int kTile = 32;   // positions: what a warp takes at a time
inline constexpr int kHeads = 8;   // query heads that a block takes at most: rows of a product
inline constexpr int kUnit = 256;  // positions: splitting finer costs more than it gains

__device__ inline int units_of(int context) { return (context + kUnit - 1) / kUnit; }

/// Where a block is in its units. An item's own units among them, [unit, end), are octets [octet, octet + octets), which
/// its warps take in `rounds` tiles each.
struct Cursor {
  int row = 0, head = 0;       // token; kv head * sets + set
  int context = 0, units = 0;  // of the token
  int start = 0;               // number of the item's first unit in the whole list
  int unit = 0, end = 0;       // of the item
  int left = 0;                // of the block's units, those from `unit` on
  int octet = 0, octets = 0, rounds = 0;
  const int32_t* blocks = nullptr;

  __device__ void enter_row(const TokenTable& tokens) {
    context = tokens.position[row] + 1;
    units = units_of(context);
    blocks = blocks_of(tokens, tokens.slot[row]);
  }
  __device__ void enter_item() {
    end = min(units, unit + left);
    const int all = (context + kOctet - 1) / kOctet;
    octet = all * unit / units;
    octets = all * end / units - octet;
    rounds = (octets * kOctet + kWarps * kTile - 1) / (kWarps * kTile);
  }
  __device__ void next(const TokenTable& tokens, int heads) {
    left -= end - unit;
    if (left == 0) return;
    start += units;
    unit = 0;
    if (++head == heads) {
      head = 0;
      ++row;
      enter_row(tokens);
    }
    enter_item();
  }
};

/// The list of units and how it is dealt out; every thread knows it.
struct Deal {
  int total = 0;   // units
  int blocks = 0;  // that have any

  __device__ int first(int block) const { return static_cast<int>(int64_t{total} * block / blocks); }
  __device__ int block_of(int unit) const {
    return static_cast<int>((int64_t{unit + 1} * blocks - 1) / total);
  }
};

/// Finds the block's first unit. Every warp does so on its own.
__device__ void begin(const TokenTable& tokens, int heads, Deal& deal, Cursor& at) {
  const int lane = threadIdx.x % 32, n = tokens.n_single;
  int sum = 0;
  for (int row = lane; row < n; row += 32) sum += units_of(tokens.position[row] + 1);
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  deal.total = sum * heads;
  deal.blocks = min(static_cast<int>(gridDim.x), deal.total);
  const int block = blockIdx.x;
  if (block >= deal.blocks) return;
  const int first = deal.first(block);
  at.left = deal.first(block + 1) - first;

  const int target = first / heads;  // the row in whose units, counted once for all heads, this one is
  for (int base = 0, before = 0; base < n; base += 32) {
    const int units = base + lane < n ? units_of(tokens.position[base + lane] + 1) : 0;
    int through = units;  // inclusive sum
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(~0u, through, offset);
      if (lane >= offset) through += other;
    }
    const unsigned beyond = __ballot_sync(~0u, before + through > target);
    if (beyond) {
      const int hit = __ffs(static_cast<int>(beyond)) - 1;
      at.row = base + hit;
      at.start = (before + __shfl_sync(~0u, through - units, hit)) * heads;
      break;
    }
    before += __shfl_sync(~0u, through, 31);
  }
  at.enter_row(tokens);
  at.head = (first - at.start) / at.units;
  at.unit = (first - at.start) % at.units;
  at.start += at.head * at.units;
  at.enter_item();
}

/// Where things lie in a block's shared memory, in bytes: tiles of K and V of each warp, and what follows.
template <typename T, int D>
struct Layout {
  using R = Rows<D>;
  static constexpr int kTileBytes = kTile * R::kStride;
  static constexpr int kQ = 2 * kWarps * kTileBytes;               // [kHeads, whole groups of 8] of T
  static constexpr int kFresh = kQ + kHeads * R::kGroups * 8 * 2;  // [2, D] of T: the new token's k and v
  static constexpr int kSums = kFresh + 2 * D * 2;                 // [kWarps, heads, D] floats, then a warp's
                                                                   // maxima and totals [kWarps, 2, heads]
  static int bytes(int heads) { return kSums + kWarps * heads * (D + 2) * 4; }
};

/// Up to 32 positions of an item, whole octets. Lane i knows octet i % 4.
template <typename T, int D>
struct Tile {
  int first = 0;  // position
  int octets = 0;
  const T* keys = nullptr;
  int rows = 0;  // of the octet that are in the cache: the new token's is not

  Tile() = default;
  __device__ Tile(const KvLayer& cache, const Cursor& at, int kv_head, int round) {
    const int piece = round * kWarps + static_cast<int>(threadIdx.x) / 32, pieces = at.rounds * kWarps;
    const int octet = at.octets * piece / pieces;
    octets = at.octets * (piece + 1) / pieces - octet;
    first = (at.octet + octet) * kOctet;
    const int own = threadIdx.x % 4, position = first + own * kOctet;
    if (own >= octets) return;
    keys = key_row<T>(cache, at.blocks, position, kv_head);
    rows = at.context - 1 - position;
  }
  /// Pairs of octets: what the products take at once. The second of the last may not be there.
  __device__ int pairs() const { return (octets + 1) / 2; }

  /// Starts the copy of K (offset 0) or V; rows of the pairs that are not in the cache become zeros.
  __device__ void fetch(char* to, int64_t offset) const {
#pragma unroll
    for (int o = 0; o < kTile / kOctet; ++o) {
      if (o >= 2 * pairs()) continue;
      const auto address = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(keys), o);
      const T* from = reinterpret_cast<const T*>(address) + offset;
      const int n = __shfl_sync(~0u, rows, o);
      Rows<D>::fetch(threadIdx.x % 32, to + o * kOctet * Rows<D>::kStride,
                     reinterpret_cast<const char*>(from), D * sizeof(T), n);
    }
    commit_copies();
  }
};

}  // namespace pipeinfer::kernels::cuda::decode

// What all layers of a step share: the angles of rotary embedding, and how decode attention's work is dealt out.
#include "../rope_math.h"
#include "decode_work.cuh"

namespace pipeinfer::kernels::cuda {
using namespace decode;

namespace {

constexpr int kPrepareWarps = 8;
constexpr int kPrepareThreads = kPrepareWarps * 32;

/// `weight(octets)` of all rows, reduced by a warp: known to all its lanes.
template <typename Weight, typename Op>
__device__ int reduce_rows(const TokenTable& tokens, Weight weight, Op op) {
  int all = 0;
  for (int row = threadIdx.x % 32; row < tokens.n_single; row += 32)
    all = op(all, weight(octets_of(tokens.position[row] + 1)));
  for (int offset = 16; offset > 0; offset /= 2) all = op(all, __shfl_xor_sync(~0u, all, offset));
  return all;
}

/// A place in the list of all rows' items, each weight(octets) units: its row and item, and its unit in the item.
struct Place {
  int row = 0, head = 0, unit = 0;
  int octets = 0;  // of the item
};

/// A warp finds unit `target` of the list.
template <typename Weight>
__device__ Place find(const TokenTable& tokens, int items, int target, Weight weight) {
  const int lane = threadIdx.x % 32, n = tokens.n_single;
  Place place;
  for (int base = 0, before = 0; base < n; base += 32) {
    const int octets = base + lane < n ? octets_of(tokens.position[base + lane] + 1) : 0;
    const int units = octets > 0 ? weight(octets) : 0;
    int through = units;  // inclusive sum
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(~0u, through, offset);
      if (lane >= offset) through += other;
    }
    const unsigned beyond = __ballot_sync(~0u, before + through > target / items);
    if (beyond) {
      const int hit = __ffs(static_cast<int>(beyond)) - 1;
      const int rest = target - (before + __shfl_sync(~0u, through - units, hit)) * items;
      const int of_item = __shfl_sync(~0u, units, hit);
      place.octets = __shfl_sync(~0u, octets, hit);
      place.row = base + hit;
      place.head = rest / of_item;
      place.unit = rest % of_item;
      break;
    }
    before += __shfl_sync(~0u, through, 31);
  }
  return place;
}

/// Where part i of n begins of so many octets: in whole pairs, see deal.
__device__ inline int cut(int octets, int i, int n) { return min((octets + 1) / 2 * i / n * 2, octets); }

/// Octets that the busiest warp may have more than the average: they take as long as joining parts of several blocks.
constexpr int kSlack = 2 * kTile;

/// A warp finds share number `index` of `blocks` * kWarps. Where items cut into pieces of up to kPiece octets do not fill
/// the grid, a block takes a piece. Where contexts are about as long and come out even, each warp takes as many whole,
/// half or quarter items: what is to be joined then is a block's. Else all warps take equally many octets, in order,
/// whatever the contexts' lengths are (as in Stream-K, Osama et al. 2023, arXiv:2301.03598). Rows of padding are left out:
/// as items of one octet, many of them would be one warp's, each with its wait for the memory. No share begins with an odd
/// octet: it may lie in the middle of a line of 128 bytes (see Line).
__device__ Share deal(TokenTable tokens, int items, int blocks, int index) {
  tokens.n_single -= tokens.n_padding;
  const auto in_octets = [](int octets) { return octets; };
  const auto in_pieces = [](int octets) { return pieces_of(octets); };
  const int block = index / kWarps, warp = index % kWarps;
  const int pieces = reduce_rows(tokens, in_pieces, Sum()) * items;
  const int64_t total = int64_t{reduce_rows(tokens, in_octets, Sum())} * items;
  const int longest = reduce_rows(tokens, in_octets, Max());
  const int n_items = tokens.n_single * items, warps = blocks * kWarps;
  int parts = 1, each = n_items;  // of an item; of them a warp's
  for (int n = 1; n <= kWarps; n *= 2) {
    const int of_warp = (n_items * n + warps - 1) / warps;
    if (of_warp * parts < each * n) parts = n, each = of_warp;
  }
  const bool even = int64_t{each} * longest * warps <= (total + kSlack * warps) * parts;
  Share share{};
  share.last_block = -1;
  if (pieces <= blocks) {
    if (block >= pieces) return share;
    const Place at = find(tokens, items, block, in_pieces);
    const int n = pieces_of(at.octets);
    const int begin = cut(at.octets, at.unit, n), octets = cut(at.octets, at.unit + 1, n) - begin;
    share.row = at.row;
    share.head = at.head;
    share.octet = begin + cut(octets, warp, kWarps);
    share.left = begin + cut(octets, warp + 1, kWarps) - share.octet;
    share.first_block = block - at.unit;
    share.last_block = share.first_block + n - 1;
  } else if (even) {
    const int n = n_items * parts;
    if (block * kWarps * each >= n) return share;
    const auto edge = [&](int part, int next) {
      return cut(octets_of(tokens.position[part / parts / items] + 1), part % parts + next, parts);
    };
    const int first = min(index * each, n - 1);
    share.row = first / parts / items;
    share.head = first / parts % items;
    share.octet = edge(first, 0);
    for (int i = index * each; i < min((index + 1) * each, n); ++i) share.left += edge(i, 1) - edge(i, 0);
    share.first_block = share.last_block = block;
  } else {
    const int64_t shares =
        max(min(int64_t{blocks}, total / (2 * kWarps)), int64_t{1}) * kWarps;  // each has a pair
    if (index >= shares) return share;
    struct Edge {
      Place at;
      int octet;
    };
    const auto edge = [&](int i) {
      const int octet = static_cast<int>(total * i / shares);
      Place at = find(tokens, items, octet, in_octets);
      const int odd = at.unit % 2;
      at.unit -= odd;
      return Edge{at, octet - odd};
    };
    const auto block_of = [&](int octet) {
      return static_cast<int>(((octet + 1) * shares - 1) / total) / kWarps;
    };
    const Edge begin = edge(block * kWarps), end = edge((block + 1) * kWarps);
    const Edge own = edge(index), next = edge(index + 1);
    const Place last = find(tokens, items, end.octet - 1, in_octets);
    share.row = own.at.row;
    share.head = own.at.head;
    share.octet = own.at.unit;
    share.left = next.octet - own.octet;
    share.first_block = block_of(begin.octet - begin.at.unit + min(1, begin.at.octets - 1));  // a pair's
    share.last_block = block_of(end.octet - 1 - last.unit + last.octets - 1);
  }
  share.context = tokens.position[share.row] + 1;
  share.slot = tokens.slot[share.row];
  return share;
}

/// The first `deal_blocks` blocks find a share a warp, the others an angle a thread.
__global__ void prepare_kernel(float2* angle, Share* shares, TokenTable tokens, Rope rope, int head_dim,
                               int items, int blocks, int deal_blocks) {
  if (static_cast<int>(blockIdx.x) < deal_blocks) {
    const int index = static_cast<int>(blockIdx.x * kPrepareWarps + threadIdx.x / 32);
    if (index >= blocks * kWarps) return;
    const Share share = deal(tokens, items, blocks, index);
    if (threadIdx.x % 32 == 0) shares[index] = share;
    return;
  }
  const int half = head_dim / 2;
  const int64_t i = int64_t{blockIdx.x - deal_blocks} * kPrepareThreads + threadIdx.x;
  if (i >= int64_t{tokens.n_tokens} * half) return;
  const int row = static_cast<int>(i / half), pair = static_cast<int>(i % half);
  const int position = tokens.position[row];
  float frequency;
  if (rope.dynamic) {
    const double base = dynamic_ntk_base(rope, tokens.prompt_tokens[tokens.slot[row]], position, head_dim);
    frequency = rope_frequency(base, pair, head_dim);
  } else {
    frequency = rope.inv_freq[pair];
  }
  float2 x;
  sincosf(static_cast<float>(position) * frequency, &x.y, &x.x);
  angle[i] = x;
}

}  // namespace

void prepare_attention(float* angle, void* workspace, const KvLayer& cache, const TokenTable& tokens,
                       const Rope& rope, int n_heads, Stream& stream) {
  const Grouping grouping(n_heads, cache.n_kv_heads);
  const int most = workspace ? most_blocks(stream.device(), grouping, cache.head_dim) : 0;
  const int blocks = grid_blocks(tokens, grouping, most, stream.device());
  const int deal_blocks = (blocks * kWarps + kPrepareWarps - 1) / kPrepareWarps;
  const int64_t angles = int64_t{tokens.n_tokens} * cache.head_dim / 2;
  const unsigned grid = deal_blocks + static_cast<unsigned>((angles + kPrepareThreads - 1) / kPrepareThreads);
  prepare_kernel<<<grid, kPrepareThreads, 0, native(stream)>>>(
      reinterpret_cast<float2*>(angle), DecodeWorkspace(workspace, most).shares, tokens, rope, cache.head_dim,
      grouping.items, blocks, deal_blocks);
  check_launch("prepare_attention");
}

}  // namespace pipeinfer::kernels::cuda

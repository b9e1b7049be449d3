// A warp's way through its share of the work list of decode attention, tile by tile, and the products of a tile.
#pragma once

#include "decode_work.cuh"
#include "mma.cuh"

namespace pipeinfer::kernels::cuda::decode {

/// Octets [octet, octet + left) of the list that begins with this item. The next tile is what of them is the item's and
/// fits.
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
  __device__ int item() const { return row << 16 | head; }
  __device__ int tile() const { return min(min(kTile, left), octets_of(context) - octet); }
  __device__ bool ends_item() const { return octet + tile() == octets_of(context); }
  /// Behind the tile.
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

/// Two neighbouring pairs of a head: elements c and c + 1, then c + D / 2 and the next, c = 2 lane < D / 2.
using Pairs = uint32_t[2];

template <typename T, int D>
__device__ inline void load_pairs(Pairs& to, const T* from) {
  to[0] = *reinterpret_cast<const uint32_t*>(from);
  to[1] = *reinterpret_cast<const uint32_t*>(from + D / 2);
}
/// `angle`: cosine and sine of each pair.
template <typename T>
__device__ inline void rotate(Pairs& x, const float (&angle)[4]) {
  float a[2], b[2];
  load(a, reinterpret_cast<const T*>(&x[0]));
  load(b, reinterpret_cast<const T*>(&x[1]));
  x[0] = pack<T>(a[0] * angle[0] - b[0] * angle[1], a[1] * angle[2] - b[1] * angle[3]);
  x[1] = pack<T>(b[0] * angle[0] + a[0] * angle[1], b[1] * angle[2] + a[1] * angle[3]);
}
/// A position's k or v into its octet.
template <typename T, int D>
__device__ inline void put_row(T* octet, int position, const Pairs& row) {
  const int c = threadIdx.x % 32 * 2;
  if (c >= D / 2) return;
  *reinterpret_cast<uint32_t*>(octet + Octet<D>::offset(position, c)) = row[0];
  *reinterpret_cast<uint32_t*>(octet + Octet<D>::offset(position, c + D / 2)) = row[1];
}
/// Zeros for the positions behind `position` in its octet.
template <typename T, int D>
__device__ inline void clear_behind(T* octet, int position) {
  using O = Octet<D>;
  const int row = threadIdx.x % 8;
  if (row <= position % kOctet) return;
  char* to = reinterpret_cast<char*>(octet);
#pragma unroll
  for (int first = 0; first < O::kGroups; first += 4) {
    const int group = first + static_cast<int>(threadIdx.x) % 32 / 8;
    if (group < O::kGroups)
      *reinterpret_cast<uint4*>(to + group * O::kGroupBytes + row * 16) = uint4{0, 0, 0, 0};
  }
  if (O::kTail > 0 && threadIdx.x % 32 < 8)
    *reinterpret_cast<uint2*>(to + O::kTailAt + row * 8) = uint2{0, 0};
}

/// score^T = keys * query for a tile: score[j] are positions 16j to 16j + 15 (mma_16x8x16's c), query[i] dims 16i on.
template <typename T, int D>
__device__ inline void multiply_keys(float (&score)[kTile / 2][4], const uint32_t (&query)[(D + 15) / 16][2],
                                     const char* keys) {
  using O = Octet<D>;
  const int lane = threadIdx.x % 32, matrix = lane / 8;
  const char* k = keys + matrix % 2 * O::kBytes + matrix / 2 * O::kGroupBytes + lane % 8 * 16;
#pragma unroll
  for (int j = 0; j < kTile / 2; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) score[j][e] = 0;
  }
#pragma unroll
  for (int i = 0; i < O::kGroups / 2; ++i) {
#pragma unroll
    for (int j = 0; j < kTile / 2; ++j) {
      uint32_t a[4];
      load_matrices(a, k + j * 2 * O::kBytes + i * 2 * O::kGroupBytes);
      mma_16x8x16<T>(score[j], a, query[i]);
    }
  }
  if constexpr (D % 16 != 0) {
#pragma unroll
    for (int j = 0; j < kTile / 2; j += 2) {
      uint32_t a[4];  // an octet each
      if constexpr (O::kTail == 0) {
        load_matrices(
            a, keys + (2 * j + matrix) * O::kBytes + (O::kGroups - 1) * O::kGroupBytes + lane % 8 * 16);
      } else {  // columns beyond meet zeros of the query
        const char* tail = keys + 2 * j * O::kBytes + O::kTailAt + lane / 4 * 8 + lane % 2 * 4;
#pragma unroll
        for (int o = 0; o < 4; ++o) a[o] = *reinterpret_cast<const uint32_t*>(tail + o * O::kBytes);
      }
      mma_16x8x8<T>(score[j], {a[0], a[1]}, query[D / 16][0]);
      mma_16x8x8<T>(score[j + 1], {a[2], a[3]}, query[D / 16][0]);
    }
  }
}

/// sum^T += values^T * weights^T: sum[i] are dims 16i to 16i + 15, weight[o] the positions of octet o.
template <typename T, int D>
__device__ inline void multiply_values(float (&sum)[(D + 15) / 16][4], const uint32_t (&weight)[kTile],
                                       const char* values) {
  using O = Octet<D>;
  const int lane = threadIdx.x % 32, matrix = lane / 8;
  const char* v = values + matrix / 2 * O::kBytes + matrix % 2 * O::kGroupBytes + lane % 8 * 16;
#pragma unroll
  for (int o = 0; o < kTile; o += 2) {
#pragma unroll
    for (int i = 0; i < O::kGroups / 2; ++i) {
      uint32_t a[4];
      load_matrices_transposed(a, v + o * O::kBytes + i * 2 * O::kGroupBytes);
      mma_16x8x16<T>(sum[i], a, {weight[o], weight[o + 1]});
    }
  }
  if constexpr (D % 16 != 0) {
#pragma unroll
    for (int first = 0; first < kTile; first += 4) {
      uint32_t a[4];  // an octet each
      const char* octets = values + first * O::kBytes;
      if constexpr (O::kTail == 0) {
        load_matrices_transposed(
            a, octets + matrix * O::kBytes + (O::kGroups - 1) * O::kGroupBytes + lane % 8 * 16);
      } else {  // rows beyond make sums that nobody reads
        const char* tail = octets + O::kTailAt + lane % 4 * 16 + lane / 4 % 4 * 2;
#pragma unroll
        for (int o = 0; o < 4; ++o) {
          const auto* pair = reinterpret_cast<const uint16_t*>(tail + o * O::kBytes);
          a[o] = pair[0] | uint32_t{pair[4]} << 16;
        }
      }
      mma_16x8x16<T>(sum[D / 16], {a[0], 0, a[1], 0}, {weight[first], weight[first + 1]});
      mma_16x8x16<T>(sum[D / 16], {a[2], 0, a[3], 0}, {weight[first + 2], weight[first + 3]});
    }
  }
}

/// Over a column of a product, which 8 lanes hold.
template <typename Op>
__device__ inline float reduce_column(float x, Op op) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) x = op(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

/// The softmax of a warp's share of an item: of the two heads whose columns this thread has.
template <typename T, int D>
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY};  // of the scores times `scale`
  float total[2] = {};                    // of this thread's positions
  float sum[(D + 15) / 16][4] = {};

  /// Scores of a tile, of which the first n positions are there, become weights. `second`: there is more than one head.
  __device__ void weigh(uint32_t (&weight)[kTile], float (&score)[kTile / 2][4], int n, float scale,
                        bool second) {
    if (n < kTile * kOctet) {
      const int row = threadIdx.x % 32 / 4;
#pragma unroll
      for (int j = 0; j < kTile / 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) score[j][e] = j * 16 + e / 2 * 8 + row < n ? score[j][e] : -INFINITY;
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (e == 1 && !second) continue;
      float largest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kTile / 2; ++j) largest = fmaxf(largest, fmaxf(score[j][e], score[j][e + 2]));
      const float new_max = fmaxf(max[e], reduce_column(largest, Max()) * scale);
      const float factor = exp2_approximate(max[e] - new_max);
      max[e] = new_max;
      total[e] *= factor;
#pragma unroll
      for (int i = 0; i < (D + 15) / 16; ++i) {
        sum[i][e] *= factor;
        sum[i][e + 2] *= factor;
      }
#pragma unroll
      for (int j = 0; j < kTile / 2; ++j) {
        score[j][e] = exp2_approximate(score[j][e] * scale - new_max);
        score[j][e + 2] = exp2_approximate(score[j][e + 2] * scale - new_max);
        total[e] += score[j][e] + score[j][e + 2];
      }
    }
#pragma unroll
    for (int o = 0; o < kTile; ++o)
      weight[o] = transpose(pack<T>(score[o / 2][o % 2 * 2], score[o / 2][o % 2 * 2 + 1]));
  }
  __device__ void finish() {
    for (float& x : total) x = reduce_column(x, Sum());
  }

  /// The result, of `heads` heads, [heads, D].
  __device__ void write(T* to, int heads) const {
    const int lane = threadIdx.x % 32;
    const float factor[2] = {1 / total[0], 1 / total[1]};
    to += lane / 4 * D + lane % 4 * 2;
#pragma unroll
    for (int dim = 0; dim < D; dim += 8) {
      const float* x = sum[dim / 16] + dim % 16 / 8 * 2;
      const uint32_t pair = transpose(pack<T>(x[0] * factor[0], x[1] * factor[1]));
      if (lane / 4 < heads && dim + lane % 4 * 2 < D) *reinterpret_cast<uint32_t*>(to + dim) = pair;
    }
  }
  /// What is to be joined, as a part (see part_floats).
  __device__ void write_part(float* to, int heads) const {
    const int row = threadIdx.x % 32 / 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int h = threadIdx.x % 4 * 2 + e;
      if (h >= heads) continue;
#pragma unroll
      for (int dim = 0; dim < D; dim += 8) {
        if (dim + row < D) to[h * D + dim + row] = sum[dim / 16][dim % 16 / 8 * 2 + e];
      }
      if (row > 0) continue;
      to[heads * D + h] = max[e];
      to[heads * (D + 1) + h] = total[e];
    }
  }
};

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
      const float factor = exp2_approximate(load(from + of_max) - max);
      total += factor * load(from + of_total);
      value += factor * load(from + i);
    }
  }
};

}  // namespace pipeinfer::kernels::cuda::decode

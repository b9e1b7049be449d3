// Products of few rows, at the speed at which the weight can be read. Each block owns n_out / gridDim rows of the weight.
// Two warps, the producers, keep a ring of slots full: a slot holds 16 of the rows, 512 columns of each. The others take
// every slot together, 64 columns each, so that weights are read once and every warp has its own pieces of x.
//
// A step is a chain of such products, and what it loses, it loses between them. Weights depend on no kernel: so a block
// lets the next kernel start when it has asked for its own last slot, and that one's ring is filled while this one's last
// sums are joined, written and made visible; what its ring cannot hold, the next kernel asks the L2 cache for.
//
// Tensor cores take 16 rows of the weight (a) and 8 or twice 8 rows of x (b). Sums do not care for the order of their
// terms, so a thread's 16 bytes, 8 neighbours in k, stand for the columns {2t, 2t + 1, 2t + 8, 2t + 9} of two
// instructions, in a and b alike.
#include "../ops.h"
#include "launch.cuh"
#include "mma.cuh"
#include "pipeinfer/base/check.h"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kConsumers = 8;
constexpr int kProducers = 2;
constexpr int kWarps = kConsumers + kProducers;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 16;  // of the weight, in a slot: a tile
constexpr int kHalfRows = kRows / kProducers;
constexpr int kPiece = 64;                     // columns of a warp
constexpr int kColumns = kConsumers * kPiece;  // of a slot
constexpr int kPitch = kColumns * 2 + 64;      // bytes: neighbouring rows are in different banks
constexpr int kSlotBytes = kRows * kPitch;
constexpr int kSlots = 6;       // two blocks fit into a multiprocessor
constexpr int kPrefetched = 4;  // slots
constexpr int kShared = kSlots * kSlotBytes;
static_assert(kFusedRows == 16);

/// What of the product a block computes, a span of units at a time. A unit is an output column: one row of the weight, or,
/// as `pairs`, rows u and n_units + u. A tile is 16 units, or 8 pairs, the second halves in rows 8 to 15.
struct Part {
  bool pairs;
  int n_units;  // of the product
  int begin, end;
  int span;

  __device__ Part(const FusedLinear& p, int span)
      : pairs(p.epilogue == Epilogue::silu_mul),
        n_units(pairs ? p.n_out / 2 : p.n_out),
        begin(static_cast<int>(int64_t{n_units} * blockIdx.x / gridDim.x)),
        end(static_cast<int>(int64_t{n_units} * (blockIdx.x + 1) / gridDim.x)),
        span(span) {}
  __device__ int tile_units() const { return pairs ? kRows / 2 : kRows; }
  __device__ int tiles(int first) const { return (min(span, end - first) + tile_units() - 1) / tile_units(); }
  /// Of row `row` (0 to 15) of a tile that begins with unit `first`; -1: there is none.
  __device__ int weight_row(int first, int row) const {
    const int unit = first + (pairs ? row % 8 : row);
    return unit >= end ? -1 : pairs && row >= 8 ? n_units + unit : unit;
  }
};

/// A slot of the ring, and which of its uses this is.
struct Place {
  int slot = 0, parity = 0;

  __device__ void next() {
    if (++slot < kSlots) return;
    slot = 0;
    parity ^= 1;
  }
};

struct Ring {
  char* memory;
  Barrier* full;   // [kSlots]
  Barrier* empty;  // [kSlots]

  __device__ char* slot(Place at) const { return memory + at.slot * kSlotBytes; }
};

/// What passes through the ring in a span, in order: for each 512 columns all tiles. A producer brings 8 rows of a tile.
template <typename T>
class Items {
 public:
  __device__ Items(const FusedLinear& p, const Part& part, int first, int half)
      : part_(part),
        weight_(static_cast<const char*>(p.weight)),
        stride_(int64_t{p.n_in} * sizeof(T)),
        n_in_(p.n_in),
        first_(first),
        tiles_(part.tiles(first)),
        half_(half) {}

  __device__ bool left() const { return column_ < n_in_; }
  /// Calls f with the next item's half: where it begins, what lies between its rows, their number, the bytes of a row.
  template <typename F>
  __device__ void next(F&& f) {
    const int unit = first_ + tile_ * part_.tile_units() + (part_.pairs ? 0 : half_ * kHalfRows);
    const int64_t row = unit + (part_.pairs ? half_ * part_.n_units : 0);
    f(weight_ + row * stride_ + column_ * static_cast<int>(sizeof(T)), stride_,
      max(0, min(kHalfRows, part_.end - unit)), min(kColumns, n_in_ - column_) * static_cast<int>(sizeof(T)));
    if (++tile_ < tiles_) return;
    tile_ = 0;
    column_ += kColumns;
  }

 private:
  const Part& part_;
  const char* const weight_;
  const int64_t stride_;
  const int n_in_, first_, tiles_, half_;
  int column_ = 0, tile_ = 0;
};

/// Two elements that an instruction takes as one register.
template <typename T>
__device__ inline float2 unpack(uint32_t word) {
  T pair[2];
  memcpy(pair, &word, sizeof word);
  return {to_float(pair[0]), to_float(pair[1])};
}

/// The rows of x that a thread multiplies, a piece at a time, asked for kAhead pieces before: token g, and g + 8 as the
/// second half. With a norm, a piece is x * norm weight, and the norm's other factor, one a token, is left to the end:
/// until then the squares of x are summed beside the products.
template <typename T, int kHalves, bool kNorm, int kAhead>
class Tokens {
 public:
  __device__ Tokens(const FusedLinear& p) : norm_(static_cast<const T*>(p.norm_weight)), n_in_(p.n_in) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const int token = threadIdx.x % 32 / 4 + 8 * h;
      there_[h] = token < p.n_rows;
      const int64_t row = !there_[h] ? 0 : p.row ? p.row[token] : token;
      x_[h] = static_cast<const T*>(p.x) + row * n_in_;
    }
  }

  __device__ void fetch(int place, int column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = column + 32 * i + threadIdx.x % 4 * 8;
      if constexpr (kNorm)
        norms_[place][i] = k < n_in_ ? *reinterpret_cast<const uint4*>(norm_ + k) : uint4{};
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        next_[place][h][i] = there_[h] && k < n_in_ ? *reinterpret_cast<const uint4*>(x_[h] + k) : uint4{};
    }
  }

  /// What was fetched, to be multiplied.
  __device__ void use(int place) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint4& a = piece[h][i] = next_[place][h][i];
        if constexpr (!kNorm) continue;
        const uint4 w = norms_[place][i];
        a.x = normed(a.x, w.x, squares[h]);
        a.y = normed(a.y, w.y, squares[h]);
        a.z = normed(a.z, w.z, squares[h]);
        a.w = normed(a.w, w.w, squares[h]);
      }
    }
  }

  uint4 piece[kHalves][2];
  float squares[kHalves];

 private:
  __device__ static uint32_t normed(uint32_t x, uint32_t weight, float& squares) {
    const float2 v = unpack<T>(x), w = unpack<T>(weight);
    squares += v.x * v.x + v.y * v.y;
    return pack<T>(finite(v.x * w.x), finite(v.y * w.y));
  }
  /// Half precision ends at 65504: x * weight may be beyond where the normalised product is not.
  __device__ static float finite(float v) {
    return std::is_same_v<T, __half> ? fminf(fmaxf(v, -65504.0f), 65504.0f) : v;
  }

  const T* x_[kHalves];
  const T* norm_;
  const int n_in_;
  bool there_[kHalves];
  uint4 next_[kAhead][kHalves][2], norms_[kAhead][2];
};

/// A warp's sums of a span: of tile i and half h, with g = lane / 4 and t = lane % 4, rows g and g + 8 (second two) of the
/// tile, tokens 2t and 2t + 1 of the half.
template <int kTiles, int kHalves>
using Sums = float[kTiles][kHalves][4];

/// A consumer's share of the items of 512 columns: of its piece of them, whole or not.
template <bool kWhole, typename T, int kTiles, int kHalves, typename X>
__device__ inline void multiply(Sums<kTiles, kHalves>& sums, const X& x, int left, int tiles,
                                const Ring& ring, Place& at) {
  const int lane = threadIdx.x % 32, own = lane % 4 * 8;
  const auto load = [&](const char* row, int column) {  // beyond the row's end the slot may hold anything
    return kWhole || own + column < left ? *reinterpret_cast<const uint4*>(row + column * 2) : uint4{};
  };
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (tile >= tiles) break;
    wait_phase(ring.full + at.slot, at.parity);
    const char* low = ring.slot(at) + lane / 4 * kPitch + (threadIdx.x / 32 * kPiece + own) * 2;
    const char* high = low + 8 * kPitch;
    const uint4 a = load(low, 0), b = load(high, 0), c = load(low, 32), d = load(high, 32);
    __syncwarp();
    if (lane == 0) arrive(ring.empty + at.slot);
    at.next();
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const uint4(&piece)[2] = x.piece[h];
      mma_16x8x16<T>(sums[tile][h], {a.x, b.x, a.y, b.y}, {piece[0].x, piece[0].y});
      mma_16x8x16<T>(sums[tile][h], {a.z, b.z, a.w, b.w}, {piece[0].z, piece[0].w});
      mma_16x8x16<T>(sums[tile][h], {c.x, d.x, c.y, d.y}, {piece[1].x, piece[1].y});
      mma_16x8x16<T>(sums[tile][h], {c.z, d.z, c.w, d.w}, {piece[1].z, piece[1].w});
    }
  }
}

/// A consumer's share of a span's items.
template <typename T, int kTiles, int kHalves, bool kNorm, int kAhead>
__device__ inline void consume(Sums<kTiles, kHalves>& sums, Tokens<T, kHalves, kNorm, kAhead>& x, int n_in,
                               int tiles, const Ring& ring, Place& at) {
  const int begin = threadIdx.x / 32 * kPiece;
#pragma unroll
  for (int i = 0; i < kAhead; ++i) x.fetch(i, begin + i * kColumns);
  for (int from = 0; from < n_in;) {
#pragma unroll
    for (int place = 0; place < kAhead; ++place, from += kColumns) {
      if (from >= n_in) break;
      x.use(place);
      x.fetch(place, from + begin + kAhead * kColumns);
      const int left = n_in - from - begin;
      if (left >= kPiece) {
        multiply<true, T, kTiles>(sums, x, left, tiles, ring, at);
      } else {
        multiply<false, T, kTiles>(sums, x, left, tiles, ring, at);
      }
    }
  }
}

/// A producer's part of a span: one half of each slot.
template <typename T>
__device__ inline void produce(Items<T> items, const Ring& ring, Place& at, int half, bool first_span) {
  for (int i = 0; items.left(); ++i, at.next()) {
    if (first_span && i == kSlots) {
      Items<T> ahead = items;
      for (int j = 0; j < kPrefetched && ahead.left(); ++j) ahead.next(prefetch_block);
    }
    wait_phase(ring.empty + at.slot, at.parity ^ 1);
    items.next([&](const char* from, int64_t stride, int n, int bytes) {
      Barrier* full = ring.full + at.slot;
      announce_copies(full, n * bytes);
      copy_block(ring.slot(at) + half * kHalfRows * kPitch, kPitch, from, stride, n, bytes, full);
      close_copies(full);
    });
  }
}

template <typename T, int kTiles, int kHalves, bool kNorm>
__global__ void __launch_bounds__(kThreads, 2) fused_linear_kernel(FusedLinear p, int span) {
  // Each warp writes one half of one tile. The fewer tiles, the more of a row's pieces are in the ring at a time.
  static_assert(kTiles * kHalves <= kWarps);
  constexpr int kAhead = kTiles > 2 ? 1 : 4 - kHalves - kNorm;
  extern __shared__ uint4 shared[];
  __shared__ Barrier full[kSlots], empty[kSlots];
  __shared__ float squares[kConsumers][kFusedRows];
  __shared__ float4 added[kThreads];
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // known to be one for all lanes
  const bool producer = warp >= kConsumers;
  if (threadIdx.x < kSlots) {
    init_barrier(full + threadIdx.x, kProducers * copy_arrivals());
    init_barrier(empty + threadIdx.x, kConsumers);
  }
  __syncthreads();
  const Ring ring{.memory = reinterpret_cast<char*>(shared), .full = full, .empty = empty};
  const Part part(p, span);
  Place at;
  if (!producer) wait_for_previous();
  Tokens<T, kHalves, kNorm, kAhead> x(p);

  for (int first = part.begin; first < part.end; first += span) {
    const int tiles = part.tiles(first);
    Sums<kTiles, kHalves> sums = {};
    if (producer) {
      const int half = warp - kConsumers;
      produce(Items<T>(p, part, first, half), ring, at, half, first == part.begin);
      if (first + span >= part.end) let_next_start();
      wait_for_previous();
    }

    // What this thread writes in the end: rows g and g + 8 of its warp's tile, tokens 2t and 2t + 1 of its half. What is
    // added to it is there in time.
    const int tile = warp / kHalves, half = warp % kHalves, unit = first + tile * part.tile_units();
    int row[2], token[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = tile < tiles ? part.weight_row(unit, lane / 4 + 8 * i) : -1;
      token[i] = half * 8 + lane % 4 * 2 + i;
    }
    const auto there = [&](int i) { return row[i / 2] >= 0 && token[i % 2] < p.n_rows; };
    const auto place = [&](int i) { return int64_t{token[i % 2]} * part.n_units + row[i / 2]; };
    float base[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!there(i)) continue;
      if (p.bias) base[i] = to_float(static_cast<const T*>(p.bias)[row[i / 2]]);
      if (p.epilogue == Epilogue::add) base[i] += to_float(static_cast<const T*>(p.out)[place(i)]);
    }
    added[threadIdx.x] = {base[0], base[1], base[2], base[3]};

    if (!producer) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) x.squares[h] = 0;
      consume<T, kTiles>(sums, x, p.n_in, tiles, ring, at);
    }
    __syncthreads();  // the ring is not needed any more: it takes the warps' sums
    float4* parts = reinterpret_cast<float4*>(shared);
    if (!producer) {
#pragma unroll
      for (int i = 0; i < kTiles * kHalves; ++i) {
        const float(&sum)[4] = sums[i / kHalves][i % kHalves];
        parts[(warp * kTiles * kHalves + i) * 32 + lane] = {sum[0], sum[1], sum[2], sum[3]};
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        float sum = x.squares[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0) squares[warp][lane / 4 + 8 * h] = sum;
      }
    }
    __syncthreads();
    if (tile < tiles) {
      float4 sum = {};
      float square[2] = {};
#pragma unroll
      for (int w = 0; w < kConsumers; ++w) {
        const float4 part_sum = parts[(w * kTiles * kHalves + warp) * 32 + lane];
        sum = {sum.x + part_sum.x, sum.y + part_sum.y, sum.z + part_sum.z, sum.w + part_sum.w};
        square[0] += squares[w][token[0]];
        square[1] += squares[w][token[1]];
      }
      float norm[2] = {1, 1};
      if constexpr (kNorm) {
        norm[0] = rsqrtf(square[0] / p.n_in + p.eps);
        norm[1] = rsqrtf(square[1] / p.n_in + p.eps);
      }
      const float4 add = added[threadIdx.x];
      const float value[4] = {norm[0] * sum.x + add.x, norm[1] * sum.y + add.y, norm[0] * sum.z + add.z,
                              norm[1] * sum.w + add.w};
      T* out = static_cast<T*>(p.out);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!there(i)) continue;
        if (p.epilogue == Epilogue::store_fp32) {
          static_cast<float*>(p.out)[place(i)] = value[i];
        } else if (!part.pairs) {
          out[place(i)] = from_float<T>(value[i]);
        } else if (i < 2) {  // of the gate; the same unit's up is two further
          out[place(i)] = from_float<T>(value[i] / (1 + expf(-value[i])) * value[i + 2]);
        }
      }
    }
    if (first + span < part.end) {
      order_before_copies();
      __syncthreads();
    }
  }
}

template <typename T, int kTiles, int kHalves>
void launch(const FusedLinear& p, int blocks, int span, Stream& stream) {
  const auto kernel = p.norm_weight ? fused_linear_kernel<T, kTiles, kHalves, true>
                                    : fused_linear_kernel<T, kTiles, kHalves, false>;
  allow_shared(kernel, kShared);
  launch_dependent(kernel, dim3(blocks), dim3(kThreads), kShared, stream, p, span);
}

}  // namespace

void fused_linear(const FusedLinear& p, DType dtype, Stream& stream) {
  int multiprocessors = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device().index),
             "counting multiprocessors");
  const bool pairs = p.epilogue == Epilogue::silu_mul;
  const int units = pairs ? p.n_out / 2 : p.n_out, tile_units = pairs ? kRows / 2 : kRows;
  const int blocks = std::min(multiprocessors, units), per_block = (units + blocks - 1) / blocks;
  const int tiles = (per_block + tile_units - 1) / tile_units;
  const auto split = [&](int most) {  // a block's spans are about the same
    const int spans = (tiles + most - 1) / most;
    return (tiles + spans - 1) / spans;
  };
  const auto with_dtype = [&](auto type) {
    using T = decltype(type);
    if (p.n_rows <= 8) {
      const int n = split(9);
      const auto kernel = n <= 2 ? launch<T, 2, 1> : n <= 5 ? launch<T, 5, 1> : launch<T, 9, 1>;
      kernel(p, blocks, n * tile_units, stream);
    } else {
      const int n = split(4);
      const auto kernel = n <= 2 ? launch<T, 2, 2> : launch<T, 4, 2>;
      kernel(p, blocks, n * tile_units, stream);
    }
  };
  if (dtype == DType::fp16) {
    with_dtype(__half{});
  } else {
    with_dtype(__nv_bfloat16{});
  }
}

}  // namespace pipeinfer::kernels::cuda

// Products of few rows, at the speed at which the weight can be read. Each block owns n_out / gridDim rows of the weight
// and all columns. One warp, the producer, keeps a ring of slots full: a slot holds 16 rows, a piece of the columns of
// each, because a multiprocessor starts a bulk copy every 50 cycles at best: copies have to be long. The others take
// every slot together, each its own columns, so that weights are read once and x, a piece at a time, lies in registers.
//
// A step is a chain of such products, and what it loses, it loses between them. Weights depend on no kernel: so a block
// lets the next kernel start when it has asked for its own last slot, and that one's ring is filled while this one's last
// sums are joined, written and made visible.
//
// Tensor cores take 16 rows of the weight (a) and 8 or twice 8 rows of x (b).
#include "../ops.h"
#include "launch.cuh"
#include "mma.cuh"
#include "pipeinfer/base/check.h"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kConsumers = 7;  // a warp more, and registers would not do for two blocks in a multiprocessor
constexpr int kWarps = kConsumers + 1;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 16;                            // of the weight, in a slot: a tile
constexpr int kStep = 16;                            // columns of an instruction
constexpr int kRound = kConsumers * kStep;           // columns that all warps take together
constexpr int kColumns = 800;                        // most of a piece
constexpr int kSteps = (kColumns - 1) / kRound + 1;  // of a warp in a piece
constexpr int kMostSlots = 8;
constexpr int kRingBytes = 104 * 1024;  // two blocks fit into a multiprocessor
constexpr int kStaticBytes = 9 * 1024;  // of shared memory beside the ring, at most
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

/// How rows are cut: pieces of `columns` (the last may be shorter), and the slots that hold 16 rows of one.
struct Cut {
  int columns, pitch, slots;  // pitch: bytes, so that neighbouring rows are in different banks

  Cut(int n_in, int shared) {
    const int pieces = (n_in + kColumns - 1) / kColumns;
    columns = ((n_in + pieces - 1) / pieces + kStep - 1) / kStep * kStep;
    pitch = columns * 2 + 16;
    slots = std::min(kMostSlots, shared / (kRows * pitch));
  }
};

/// The ring, and a place in it: a slot, and the parity of its uses.
struct Ring {
  char* memory;
  Barrier* full;   // [slots]
  Barrier* empty;  // [slots]
  int pitch, slots;
  int slot = 0, parity = 0;

  __device__ char* at() const { return memory + slot * kRows * pitch; }
  __device__ void next() {
    if (++slot < slots) return;
    slot = 0;
    parity ^= 1;
  }
};

/// Two elements that an instruction takes as one register.
template <typename T>
__device__ inline float2 unpack(uint32_t word) {
  T pair[2];
  memcpy(pair, &word, sizeof word);
  return {to_float(pair[0]), to_float(pair[1])};
}

/// The first column of a warp's step in a piece.
__device__ inline int step_column(int step) { return (step * kConsumers + threadIdx.x / 32) * kStep; }

/// The rows of x that a thread multiplies, a piece at a time: token g, and g + 8 as the second half. With a norm, a piece
/// is x * norm weight, and the norm's other factor, one a token, is left to the end: until then the squares of x are
/// summed beside the products.
template <typename T, int kHalves, bool kNorm>
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

  /// Asks for the piece that begins there.
  __device__ void fetch(int from, int columns) {
    columns = min(columns, n_in_ - from);
#pragma unroll
    for (int i = 0; i < kSteps * 2; ++i) {
      const int k = step_column(i / 2) + i % 2 * 8 + threadIdx.x % 4 * 2;
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        next_[h][i] = there_[h] && k < columns ? *reinterpret_cast<const uint32_t*>(x_[h] + from + k) : 0;
      if constexpr (kNorm) norms_[i] = k < columns ? *reinterpret_cast<const uint32_t*>(norm_ + from + k) : 0;
    }
  }

  /// What was fetched becomes what is multiplied.
  __device__ void use() {
#pragma unroll
    for (int i = 0; i < kSteps * 2; ++i) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        piece[h][i] = kNorm ? normed(next_[h][i], norms_[i], squares[h]) : next_[h][i];
    }
  }

  uint32_t piece[kHalves][kSteps * 2];  // of each step b
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
  uint32_t next_[kHalves][kSteps * 2], norms_[kSteps * 2];
};

/// A warp's sums: of tile i and half h, with g = lane / 4 and t = lane % 4, rows g and g + 8 (second two) of the tile,
/// tokens 2t and 2t + 1 of the half.
template <int kTiles, int kHalves>
using Sums = float[kTiles][kHalves][4];

/// A consumer's share of a slot.
template <typename T, int kHalves>
__device__ inline void multiply(float (&sums)[kHalves][4], const uint32_t (&x)[kHalves][kSteps * 2],
                                int columns, Ring& ring) {
  wait_phase(ring.full + ring.slot, ring.parity);
  const int lane = threadIdx.x % 32;
  const char* const row = ring.at() + lane % 16 * ring.pitch + lane / 16 * 16;
  constexpr int kChains = 4 / kHalves, kGroup = 4;  // loads, and products, under way together
  float chain[kChains][kHalves][4] = {};
#pragma unroll
  for (int from = 0; from < kSteps; from += kGroup) {
    uint32_t a[kGroup][4];
    const bool whole = step_column(from) + (kGroup - 1) * kRound + kStep <= columns;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int k = step_column(from + i);
      if (whole) load_matrices(a[i], row + k * 2);
    }
    if (!whole) {  // beyond the row's end the slot may hold anything
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const int k = step_column(from + i);
        if (k < columns) load_matrices(a[i], row + k * 2);
        if (k >= columns) a[i][0] = a[i][1] = 0;
        if (k + 8 >= columns) a[i][2] = a[i][3] = 0;
      }
    }
    if (from + kGroup == kSteps) {
      __syncwarp();
      if (lane == 0) arrive(ring.empty + ring.slot);
      ring.next();
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        mma_16x8x16<T>(chain[i % kChains][h], a[i], {x[h][2 * (from + i)], x[h][2 * (from + i) + 1]});
    }
  }
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kChains; ++c) sum += chain[c][h][i];
      sums[h][i] += sum;
    }
  }
}

/// A consumer's share of a span: for each piece all tiles.
template <typename T, int kTiles, int kHalves, bool kNorm>
__device__ inline void consume(Sums<kTiles, kHalves>& sums, Tokens<T, kHalves, kNorm>& x, int n_in,
                               int columns, int tiles, Ring& ring) {
  constexpr bool kAhead = !kNorm;  // there are registers for the next piece
  x.fetch(0, columns);
  for (int from = 0; from < n_in; from += columns) {
    x.use();
    if (kAhead) x.fetch(from + columns, columns);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile < tiles) multiply<T>(sums[tile], x.piece, min(columns, n_in - from), ring);
    }
    if (!kAhead) x.fetch(from + columns, columns);
  }
}

/// The producer's part of a span, in the same order.
__device__ inline void produce(const FusedLinear& p, const Part& part, int first, int columns, Ring& ring) {
  const int64_t stride = int64_t{p.n_in} * 2;
  const int tiles = part.tiles(first);
  for (int from = 0; from < p.n_in; from += columns) {
    const int bytes = min(columns, p.n_in - from) * 2;
    for (int tile = 0; tile < tiles; ++tile, ring.next()) {
      const int unit = first + tile * part.tile_units(), n = min(part.tile_units(), part.end - unit);
      const char* weight = static_cast<const char*>(p.weight) + unit * stride + int64_t{from} * 2;
      Barrier* const full = ring.full + ring.slot;
      wait_phase(ring.empty + ring.slot, ring.parity ^ 1);
      announce_copies(full, (part.pairs ? 2 : 1) * n * bytes);
      copy_block(ring.at(), ring.pitch, weight, stride, n, bytes, full);
      if (part.pairs)
        copy_block(ring.at() + kRows / 2 * ring.pitch, ring.pitch, weight + part.n_units * stride, stride, n,
                   bytes, full);
      close_copies(full);
    }
  }
}

template <typename T, int kTiles, int kHalves, bool kNorm>
__global__ void __launch_bounds__(kThreads, 2) fused_linear_kernel(FusedLinear p, Cut cut, int span) {
  constexpr int kItems = kTiles * kHalves;              // a half of a tile, what a warp writes
  constexpr int kOwn = (kItems + kWarps - 1) / kWarps;  // items of a warp: its number, + kWarps, ...
  extern __shared__ uint4 shared[];
  __shared__ Barrier full[kMostSlots], empty[kMostSlots];
  __shared__ float squares[kConsumers][kFusedRows];
  __shared__ float4 added[kOwn][kThreads];
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // known to be one for all lanes
  const bool producer = warp == kConsumers;
  if (threadIdx.x < cut.slots) {
    init_barrier(full + threadIdx.x, copy_arrivals());
    init_barrier(empty + threadIdx.x, kConsumers);
  }
  __syncthreads();
  Ring ring{.memory = reinterpret_cast<char*>(shared),
            .full = full,
            .empty = empty,
            .pitch = cut.pitch,
            .slots = cut.slots};
  const Part part(p, span);
  if (!producer) wait_for_previous();
  Tokens<T, kHalves, kNorm> x(p);

  for (int first = part.begin; first < part.end; first += span) {
    const int tiles = part.tiles(first);
    Sums<kTiles, kHalves> sums = {};
    if (producer) {
      produce(p, part, first, cut.columns, ring);
      if (first + span >= part.end) let_next_start();
      wait_for_previous();
    }

    // What this thread writes in the end, of each own item: rows g and g + 8, tokens 2t and 2t + 1. What is added to it is
    // there in time.
    const auto each = [&](auto&& f) {  // f(own item, its place in a float4, row of the weight, token)
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int tile = (warp + j * kWarps) / kHalves, half = (warp + j * kWarps) % kHalves;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = half * 8 + lane % 4 * 2 + i % 2;
          const int row =
              tile < tiles ? part.weight_row(first + tile * part.tile_units(), lane / 4 + i / 2 * 8) : -1;
          if (row >= 0 && token < p.n_rows) f(j, i, row, token);
        }
      }
    };
    const bool adds = p.bias || p.epilogue == Epilogue::add;
    if (adds) {
      each([&](int j, int i, int row, int token) {
        float base = 0;
        if (p.bias) base = to_float(static_cast<const T*>(p.bias)[row]);
        if (p.epilogue == Epilogue::add)
          base += to_float(static_cast<const T*>(p.out)[int64_t{token} * part.n_units + row]);
        reinterpret_cast<float*>(&added[j][threadIdx.x])[i] = base;
      });
    }

    if (!producer) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) x.squares[h] = 0;
      consume<T, kTiles>(sums, x, p.n_in, cut.columns, tiles, ring);
    }
    __syncthreads();  // the ring is not needed any more: it takes the warps' sums
    float4* const parts = reinterpret_cast<float4*>(shared);
    if (!producer) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const float(&sum)[4] = sums[i / kHalves][i % kHalves];
        if (i / kHalves < tiles) parts[(warp * kItems + i) * 32 + lane] = {sum[0], sum[1], sum[2], sum[3]};
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
    float value[kOwn][4];
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int item = warp + j * kWarps;
      if (item >= tiles * kHalves) break;
      float4 sum = {};
      float square[2] = {};
#pragma unroll
      for (int w = 0; w < kConsumers; ++w) {
        const float4 part_sum = parts[(w * kItems + item) * 32 + lane];
        sum = {sum.x + part_sum.x, sum.y + part_sum.y, sum.z + part_sum.z, sum.w + part_sum.w};
        const float* const token = squares[w] + item % kHalves * 8 + lane % 4 * 2;
        square[0] += token[0];
        square[1] += token[1];
      }
      const float even = kNorm ? rsqrtf(square[0] / p.n_in + p.eps) : 1;
      const float odd = kNorm ? rsqrtf(square[1] / p.n_in + p.eps) : 1;
      const float4 add = adds ? added[j][threadIdx.x] : float4{};
      value[j][0] = even * sum.x + add.x;
      value[j][1] = odd * sum.y + add.y;
      value[j][2] = even * sum.z + add.z;
      value[j][3] = odd * sum.w + add.w;
    }
    each([&](int j, int i, int row, int token) {
      const int64_t place = int64_t{token} * part.n_units + row;
      if (p.epilogue == Epilogue::store_fp32) {
        static_cast<float*>(p.out)[place] = value[j][i];
      } else if (!part.pairs) {
        static_cast<T*>(p.out)[place] = from_float<T>(value[j][i]);
      } else if (i < 2) {  // of the gate; the same unit's up is two further
        static_cast<T*>(p.out)[place] =
            from_float<T>(value[j][i] / (1 + expf(-value[j][i])) * value[j][i + 2]);
      }
    });
    if (first + span < part.end) {
      order_before_copies();
      __syncthreads();
    }
  }
}

template <typename T, int kTiles, int kHalves>
void launch(const FusedLinear& p, const Cut& cut, int blocks, int span, Stream& stream) {
  const auto kernel = p.norm_weight ? fused_linear_kernel<T, kTiles, kHalves, true>
                                    : fused_linear_kernel<T, kTiles, kHalves, false>;
  constexpr int kParts = kConsumers * kTiles * kHalves * 32 * sizeof(float4);
  const int shared = std::max(cut.slots * kRows * cut.pitch, kParts);
  allow_shared(kernel, shared);
  launch_dependent(kernel, dim3(blocks), dim3(kThreads), shared, stream, p, cut, span);
}

}  // namespace

void fused_linear(const FusedLinear& p, DType dtype, Stream& stream) {
  const bool pairs = p.epilogue == Epilogue::silu_mul;
  const int units = pairs ? p.n_out / 2 : p.n_out, tile_units = pairs ? kRows / 2 : kRows;
  const int blocks = std::min(attribute(cudaDevAttrMultiProcessorCount, stream.device()), units),
            per_block = (units + blocks - 1) / blocks;
  const int tiles = (per_block + tile_units - 1) / tile_units;
  const auto split = [&](int most) {  // a block's spans are about the same
    const int spans = (tiles + most - 1) / most;
    return (tiles + spans - 1) / spans;
  };
  const Cut cut(p.n_in,
                std::min(kRingBytes,
                         attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device()) - kStaticBytes));
  const auto with_dtype = [&](auto type) {
    using T = decltype(type);
    if (p.n_rows <= 8) {
      const int n = split(9);
      const auto kernel = n <= 2 ? launch<T, 2, 1> : n <= 5 ? launch<T, 5, 1> : launch<T, 9, 1>;
      kernel(p, cut, blocks, n * tile_units, stream);
    } else {
      const int n = split(5);
      const auto kernel = n <= 2 ? launch<T, 2, 2> : launch<T, 5, 2>;
      kernel(p, cut, blocks, n * tile_units, stream);
    }
  };
  if (dtype == DType::fp16) {
    with_dtype(__half{});
  } else {
    with_dtype(__nv_bfloat16{});
  }
}

}  // namespace pipeinfer::kernels::cuda

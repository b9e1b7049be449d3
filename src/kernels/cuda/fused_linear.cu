// Products of few rows, at the speed at which the weight can be read. Each block owns n_out / gridDim rows of the weight,
// each of its warps every eighth piece (64 elements) of all of them: so weights are read once, by whole 128-byte lines,
// and every warp has its own pieces of x. A thread copies into shared memory exactly what it multiplies itself, kDepth
// items ahead: no barrier is needed, and since weights depend on no kernel, the first items are asked for while the
// kernel before still runs.
//
// Tensor cores take 8 rows of the weight (b, transposed) and up to 16 rows of x (a). Sums do not care for the order of
// their terms, so a thread's 16 bytes, 8 neighbours in k, stand for the columns {2t, 2t + 1, 2t + 8, 2t + 9} of two
// instructions, in a and b alike.
#include "../ops.h"
#include "launch.cuh"
#include "mma.cuh"
#include "pipeinfer/base/check.h"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kPiece = 64;           // elements of k in an item
constexpr int kItem = 2 * 32;        // an item: 8 rows of the weight, one piece; 2 x 16 bytes a thread
constexpr int kDepth = 9;            // items of a warp on their way
constexpr int kMaxTokens = 16;       // rows of x: kFusedRows
constexpr int kAdders = kWarps / 2;  // partial sums that are in shared memory at a time
static_assert(kFusedRows == kMaxTokens);

/// What of the product a block computes, a span of units at a time. A unit is an output column: one row of the weight,
/// or, as `pairs`, rows u and n_units + u. An item's tile i is units [first + 8 (i / (1 + pairs)), + 8).
struct Part {
  int pairs;    // 0 or 1
  int n_units;  // of the product
  int begin, end;
  int span;  // a multiple of 8

  __device__ int tiles(int first) const { return ((min(span, end - first) + 7) / 8) << pairs; }
  __device__ int unit(int first, int tile) const { return first + (tile >> pairs) * 8; }
  __device__ int64_t weight_row(int unit, int tile) const { return unit + (tile & pairs) * n_units; }
};

/// A warp's items in the order span, piece, tile, and the ring through which they pass.
template <typename T>
class WeightStream {
 public:
  __device__ WeightStream(const FusedLinear& p, const Part& part, uint4* ring)
      : part_(part),
        weight_(static_cast<const T*>(p.weight)),
        n_in_(p.n_in),
        ring_(ring + threadIdx.x / 32 * kDepth * kItem + threadIdx.x % 32),
        first_(threadIdx.x / 32 * kPiece < p.n_in ? part.begin : part.end),
        column_(threadIdx.x / 32 * kPiece) {
    for (int i = 0; i < kDepth; ++i) ask(i);
  }

  /// The oldest item; its place is then used for the next one.
  template <typename F>
  __device__ void take(F&& multiply) {
    wait_copies<kDepth - 1>();
    multiply(ring_[slot_ * kItem], ring_[slot_ * kItem + 32]);
    ask(slot_);
    slot_ = slot_ + 1 == kDepth ? 0 : slot_ + 1;
  }

 private:
  __device__ void ask(int slot) {
    if (first_ < part_.end) {
      const int lane = threadIdx.x % 32;
      const int unit = part_.unit(first_, tile_) + lane / 4, k = column_ + lane % 4 * 8;
      const T* from = weight_ + part_.weight_row(unit, tile_) * n_in_ + k;
      copy_to_shared<16>(ring_ + slot * kItem, from, unit < part_.end && k < n_in_);
      copy_to_shared<16>(ring_ + slot * kItem + 32, from + 32, unit < part_.end && k + 32 < n_in_);
      if (++tile_ == part_.tiles(first_)) {
        tile_ = 0;
        column_ += kWarps * kPiece;
        if (column_ >= n_in_) {
          column_ = threadIdx.x / 32 * kPiece;
          first_ += part_.span;
        }
      }
    }
    commit_copies();
  }

  const Part part_;
  const T* const weight_;
  const int n_in_;
  uint4* const ring_;
  int first_, column_, tile_ = 0;  // of the item to ask for next
  int slot_ = 0;                   // of the item to take next
};

/// Two elements that an instruction takes as one register.
template <typename T>
__device__ inline float2 unpack(uint32_t word) {
  T pair[2];
  memcpy(pair, &word, sizeof word);
  return {to_float(pair[0]), to_float(pair[1])};
}
/// The rows of x that a thread multiplies, one piece at a time: token g, and g + 8 as the second half. With a norm, a
/// piece is x * norm weight, and the norm's other factor, one a token, is left to the end: until then the squares of x
/// are summed beside the products.
template <typename T, int kHalves>
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

  /// Starts loading the piece at `column`, if there is one.
  __device__ void fetch(int column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = column + 32 * i + threadIdx.x % 4 * 8;
      if (norm_) next_norm_[i] = k < n_in_ ? *reinterpret_cast<const uint4*>(norm_ + k) : uint4{};
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        next_[h][i] = there_[h] && k < n_in_ ? *reinterpret_cast<const uint4*>(x_[h] + k) : uint4{};
    }
  }

  /// What was fetched, to be multiplied.
  __device__ void use() {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 w = next_norm_[i];
        uint4& a = piece[h][i] = next_[h][i];
        if (!norm_) continue;
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
  uint4 next_[kHalves][2], next_norm_[2] = {};
};

/// sum [8 rows of x and, as the second half, 8 more; 8 rows of the weight] += one piece.
template <typename T, int kHalves>
__device__ inline void multiply(float (&sum)[2 * kHalves], const uint4 (&x)[kHalves][2], uint4 w0, uint4 w1) {
  const auto step = [&](uint32_t a0, uint32_t a2, uint32_t a1, uint32_t a3, uint32_t b0, uint32_t b1) {
    if constexpr (kHalves == 2) {
      mma_16x8x16<T>(sum, {a0, a1, a2, a3}, {b0, b1});
    } else {
      mma_8x8x16<T>(sum, {a0, a2}, {b0, b1});
    }
  };
  constexpr int h = kHalves - 1;
  step(x[0][0].x, x[0][0].y, x[h][0].x, x[h][0].y, w0.x, w0.y);
  step(x[0][0].z, x[0][0].w, x[h][0].z, x[h][0].w, w0.z, w0.w);
  step(x[0][1].x, x[0][1].y, x[h][1].x, x[h][1].y, w1.x, w1.y);
  step(x[0][1].z, x[0][1].w, x[h][1].z, x[h][1].w, w1.z, w1.w);
}

/// The sums of all warps, joined in shared memory, and what becomes of them.
template <typename T, int kTiles, int kHalves>
struct Joined {
  float sums[kAdders][kTiles][32][2 * kHalves];
  float squares[kWarps][kMaxTokens];

  __device__ void add(const float (&own)[kTiles][2 * kHalves], const float (&own_squares)[kHalves]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      float sum = own_squares[h];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane % 4 == 0) squares[warp][lane / 4 + 8 * h] = sum;
    }
    __syncthreads();  // the span before was written out
    if (warp >= kAdders) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) store(sums[warp - kAdders][i][lane], own[i]);
    }
    __syncthreads();
    if (warp < kAdders) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float sum[2 * kHalves];
        load(sum, sums[warp][i][lane]);
#pragma unroll
        for (int j = 0; j < 2 * kHalves; ++j) sum[j] += own[i][j];
        store(sums[warp][i][lane], sum);
      }
    }
    __syncthreads();
  }

  /// Of column `column` (0 to 7) of a tile.
  __device__ float sum(int tile, int column, int token) const {
    float total = 0;
    for (int w = 0; w < kAdders; ++w)
      total += sums[w][tile][token % 8 * 4 + column / 2][token / 8 * 2 + column % 2];
    return total;
  }

  __device__ float norm(const FusedLinear& p, int token) const {
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += squares[w][token];
    return 1 / sqrtf(total / p.n_in + p.eps);
  }
};

template <typename T, int kTiles, int kHalves>
__global__ void __launch_bounds__(kThreads, 2) fused_linear_kernel(FusedLinear p, int span) {
  extern __shared__ uint4 ring[];
  __shared__ Joined<T, kTiles, kHalves> joined;
  let_next_start();
  const int pairs = p.epilogue == Epilogue::silu_mul ? 1 : 0, n_units = p.n_out >> pairs;
  const Part part{.pairs = pairs,
                  .n_units = n_units,
                  .begin = static_cast<int>(int64_t{n_units} * blockIdx.x / gridDim.x),
                  .end = static_cast<int>(int64_t{n_units} * (blockIdx.x + 1) / gridDim.x),
                  .span = span};
  WeightStream<T> weights(p, part, ring);
  wait_for_previous();

  const int begin = threadIdx.x / 32 * kPiece;
  Tokens<T, kHalves> x(p);
  x.fetch(begin);
  const T* bias = static_cast<const T*>(p.bias);
  for (int first = part.begin; first < part.end; first += span) {
    const int tiles = part.tiles(first);
    float sums[kTiles][2 * kHalves] = {};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) x.squares[h] = 0;
    for (int column = begin; column < p.n_in; column += kWarps * kPiece) {
      x.use();
      x.fetch(column + kWarps * kPiece < p.n_in ? column + kWarps * kPiece : begin);  // of the next span
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (i < tiles)
          weights.take([&](uint4 w0, uint4 w1) { multiply<T, kHalves>(sums[i], x.piece, w0, w1); });
      }
    }
    joined.add(sums, x.squares);

    const int n = min(span, part.end - first);
    for (int item = threadIdx.x; item < n * p.n_rows; item += kThreads) {
      const int token = item / n, unit = first + item % n, column = item % n % 8;
      const int tile = (item % n / 8) << pairs;
      const float norm = p.norm_weight ? joined.norm(p, token) : 1;
      const auto value = [&](int which) {
        const float product = norm * joined.sum(tile + which, column, token);
        return bias ? product + to_float(bias[part.weight_row(unit, which)]) : product;
      };
      const int64_t at = int64_t{token} * n_units + unit;
      T* out = static_cast<T*>(p.out) + at;
      switch (p.epilogue) {
        case Epilogue::store:
          *out = from_float<T>(value(0));
          break;
        case Epilogue::store_fp32:
          static_cast<float*>(p.out)[at] = value(0);
          break;
        case Epilogue::add:
          *out = from_float<T>(to_float(*out) + value(0));
          break;
        case Epilogue::silu_mul: {
          const float gate = value(0);
          *out = from_float<T>(gate / (1 + expf(-gate)) * value(1));
          break;
        }
      }
    }
  }
}

template <typename T, int kTiles, int kHalves>
void launch(const FusedLinear& p, int blocks, int per_block, Stream& stream) {
  const auto kernel = fused_linear_kernel<T, kTiles, kHalves>;
  constexpr int shared = kWarps * kDepth * kItem * sizeof(uint4);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
             "fused_linear");
  // Spans of a block are about the same.
  const int most = p.epilogue == Epilogue::silu_mul ? kTiles * 4 : kTiles * 8;
  const int spans = (per_block + most - 1) / most, span = ((per_block + spans - 1) / spans + 7) / 8 * 8;
  launch_dependent(kernel, dim3(blocks), dim3(kThreads), shared, stream, p, span);
}

}  // namespace

void fused_linear(const FusedLinear& p, DType dtype, Stream& stream) {
  int multiprocessors = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device().index),
             "counting multiprocessors");
  const int units = p.epilogue == Epilogue::silu_mul ? p.n_out / 2 : p.n_out;
  const int blocks = std::min(multiprocessors, units), per_block = (units + blocks - 1) / blocks;
  const auto with_tiles = [&](auto type, auto tiles) {
    using T = decltype(type);
    if (p.n_rows <= 8) {
      launch<T, tiles(), 1>(p, blocks, per_block, stream);
    } else {
      launch<T, tiles(), 2>(p, blocks, per_block, stream);
    }
  };
  const auto with_dtype = [&](auto type) {
    if (per_block <= 32 && p.epilogue != Epilogue::silu_mul) {
      with_tiles(type, std::integral_constant<int, 4>{});
    } else {
      with_tiles(type, std::integral_constant<int, 10>{});
    }
  };
  if (dtype == DType::fp16) {
    with_dtype(__half{});
  } else {
    with_dtype(__nv_bfloat16{});
  }
}

}  // namespace pipeinfer::kernels::cuda

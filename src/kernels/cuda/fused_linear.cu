// Products of few rows, at the speed at which the weight can be read: those of GPUs that have no tiled_linear.cu, and
// logits of few or picked rows. Each block owns n_out / gridDim rows of the weight, its warps a range of the columns each.
// A thread asks for its weights well ahead, straight into registers: 128 bytes of four rows an instruction, because memory
// is a fifth slower in pieces of 64. x comes out of the L1 cache, where a multiprocessor's blocks find the same.
//
// A step is a chain of such products, and what it loses, it loses between them. Weights depend on no kernel: so the next
// kernel's blocks start as soon as this one's leave, and have their first weights when its sums are written and visible.
//
// Tensor cores take 8 rows of x, half of their columns as a's rows 0 to 7 and half as rows 8 to 15, and as b's columns four
// rows of the weight, each twice, by halves too. What meets its own half is right, in the diagonal of c, and what meets
// the other is left there. Sums do not care for the order of their terms, so a thread's 16 bytes, 8 neighbours in k, stand
// for the columns {2t, 2t + 1, 2t + 8, 2t + 9} of two instructions, in a and b alike.
#include <algorithm>

#include "../ops.h"
#include "launch.cuh"
#include "mma.cuh"
#include "pipeinfer/base/check.h"
#include "split_norm.cuh"
#include "tiled_linear.h"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kFewRows = 16;  // the most of this kernel
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kBlocksPerSm = 2;
constexpr int kGroup = 4;   // rows of the weight of which a warp's 16-byte loads take
constexpr int kPiece = 64;  // columns

/// How much a block has in registers, of which two blocks share a multiprocessor's: groups of rows that make a tile (with
/// pairs, half of them are the gate's and half the up's), and pieces that are asked for ahead.
template <int kHalves>
struct Shape {
  static constexpr int kGroups = kHalves == 1 ? 2 : 4;
  static constexpr int kAhead = kHalves == 1 ? 7 : 2;
};

/// Whether a norm's squares are copied first, which takes of the cache that more tokens' x needs.
template <int kHalves>
inline constexpr bool kCopiesSquares = kHalves == 1;

/// How n columns are dealt to blocks: in order, and evenly. Who would have one tile of few tokens and a part of another has
/// two: a tile takes as long where rows are missing, and fewer blocks find room beside attention's.
struct Deal {
  int n, blocks, each, more;  // the first `more` blocks have one more

  Deal(int n, int blocks) : n(n), blocks(blocks), each(n / blocks), more(n % blocks) {}
  Deal(int n, Device device)
      : Deal(n, std::min({attribute(cudaDevAttrMultiProcessorCount, device) * kBlocksPerSm, kNormParts, n})) {
    constexpr int kTile = Shape<1>::kGroups * kGroup;
    const int most = count(0);
    if (most > kTile && most < 2 * kTile) *this = Deal(n, (n + 2 * kTile - 1) / (2 * kTile));
  }
  __device__ int begin(int block) const { return block * each + min(block, more); }
  __host__ __device__ int count(int block) const { return each + (block < more ? 1 : 0); }
};

/// What a thread writes of the tile that begins with the block's column `first`.
struct Place {
  int token, column;
  bool there;

  __device__ Place(const FusedLinear& p, const Deal& deal, int first, int tile) {
    int thread = threadIdx.x;
    asm volatile("" : "+r"(thread));  // computed anew: registers are scarce
    const int block = static_cast<int>(blockIdx.x);
    token = thread >> (__ffs(tile) - 1);
    column = deal.begin(block) + first + (thread & (tile - 1));
    there = token < p.n_rows && column < deal.begin(block + 1);
  }
  __device__ int64_t index(const Deal& deal) const { return int64_t{token} * deal.n + column; }
};

template <typename T, int kHalves>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) fused_linear_kernel(FusedLinear p, Deal deal) {
  constexpr int kGroups = Shape<kHalves>::kGroups, kAhead = Shape<kHalves>::kAhead;
  constexpr int kTokens = 8 * kHalves, kRows = kGroups * kGroup;
  static_assert(kTokens * kRows <= kThreads);
  __shared__ float parts[2][kWarps][kTokens][kRows + 1];
  __shared__ float factor[kTokens];  // of the norm
  extern __shared__ uint4 shared[];
  uint32_t* const residual = reinterpret_cast<uint32_t*>(shared);         // [kThreads], what is added to out
  int32_t* const rows = reinterpret_cast<int32_t*>(residual + kThreads);  // [kFewRows], of x
  float* const squares = reinterpret_cast<float*>(rows + kFewRows);       // [n_rows, kNormParts]
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // known to be one for all lanes
  const int block = static_cast<int>(blockIdx.x);
  const bool pairs = p.epilogue == Epilogue::silu_mul;
  const int tile = pairs ? kRows / 2 : kRows;  // columns of out
  const int pieces = (p.n_in + kPiece - 1) / kPiece, begin = pieces * warp / kWarps,
            end = pieces * (warp + 1) / kWarps;

  // Weights come in the order in which they are used: tile by tile, of each the warp's pieces, kAhead at a time.
  const int64_t next_group = int64_t{kGroup} * p.n_in,
                second_half = (pairs ? int64_t{deal.n} : kRows / 2) * p.n_in;
  const int limit = min(end * kPiece, p.n_in) - lane % 8 * 8;
  const T* const weight =
      static_cast<const T*>(p.weight) + int64_t{deal.begin(block) + lane / 8} * p.n_in + lane % 8 * 8;
  uint4 w[kAhead][kGroups];
  const auto fetch = [&](int i, const T* from, int piece, int left) {
    const bool there = (piece + i) * kPiece < limit;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int half = j / (kGroups / 2), group = j % (kGroups / 2);
      w[i][j] = load_once(from + half * second_half + group * next_group + i * kPiece,
                          there && group * kGroup + (pairs ? 0 : half * kRows / 2) < left);
    }
  };
  const auto start = [&](int first, int piece) { return weight + int64_t{first} * p.n_in + piece * kPiece; };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch(i, start(0, begin), begin, deal.count(block) - lane / 8);
  let_next_start();
  wait_for_previous();

  // Copies and not loads, here and below: who waits for a load waits for all weights that are under way.
  if (p.row) {
    if (static_cast<int>(threadIdx.x) < p.n_rows) copy_to_shared<4>(rows + threadIdx.x, p.row + threadIdx.x);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
  }
  // Of tokens that are not there, any other. Where there are no columns any more, others: their weights are 0.
  const auto x_row = [&](int token) { return p.row ? rows[token] : token; };
  const T* x[kHalves];
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
    x[h] = static_cast<const T*>(p.x) + int64_t{x_row(min(g + 8 * h, p.n_rows - 1))} * p.n_in;
  const auto read = [&](const T* row, int piece, int half) {
    return *reinterpret_cast<const uint4*>(row +
                                           min(piece * kPiece + half * (kPiece / 2) + t * 8, p.n_in - 8));
  };

  // A lane adds what it has copied, four squares at a time.
  const auto squares_of = [&](int token) { return p.norm.squares + x_row(token) * kNormParts; };
  const auto each_square = [&](auto&& f) {
#pragma unroll
    for (int k = lane * 4; k < kNormParts; k += 32 * 4) {
      if (k < p.norm.parts) f(k);
    }
  };
  if (kCopiesSquares<kHalves> && p.norm.weight && warp < p.n_rows) {
    const float* const from = squares_of(warp);
    each_square([&](int k) { copy_to_shared<16>(squares + warp * kNormParts + k, from + k); });
  }

  float square = 0;  // of what it has written
  for (int first = 0; first < deal.count(block); first += tile) {
    if (p.epilogue == Epilogue::add) {
      const Place at(p, deal, first, tile);
      const int64_t word = at.index(deal) / 2;  // copies are of 4 bytes at least
      if (at.there) copy_to_shared<4>(residual + threadIdx.x, static_cast<const uint32_t*>(p.out) + word);
    }
    commit_copies();

    float sums[kGroups][kHalves][4] = {};
    for (int now = begin; now < end; now += kAhead) {
      const bool last = now + kAhead >= end;
      const int next_first = last ? first + tile : first, next = last ? begin : now + kAhead;
      const T* const from = start(next_first, next);
      const int left = deal.count(block) - next_first - lane / 8;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        uint4 a[kHalves][2];
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          a[h][0] = read(x[h], now + i, 0);
          a[h][1] = read(x[h], now + i, 1);
        }
#pragma unroll
        for (int j = 0; j < kGroups; ++j) {
#pragma unroll
          for (int h = 0; h < kHalves; ++h)
            mma_16x8x16<T>(sums[j][h], {a[h][0].x, a[h][1].x, a[h][0].y, a[h][1].y}, {w[i][j].x, w[i][j].y});
        }
#pragma unroll
        for (int j = 0; j < kGroups; ++j) {
#pragma unroll
          for (int h = 0; h < kHalves; ++h)
            mma_16x8x16<T>(sums[j][h], {a[h][0].z, a[h][1].z, a[h][0].w, a[h][1].w}, {w[i][j].z, w[i][j].w});
        }
        fetch(i, from, next, left);
      }
    }

    const Place at(p, deal, first, tile);
    wait_copies<0>();
    if (first == 0 && p.norm.weight) {
      for (int i = warp; i < p.n_rows; i += kWarps) {
        float sum = 0;
        const float* const from = kCopiesSquares<kHalves> ? squares + i * kNormParts : squares_of(i);
        each_square([&](int k) {
          for (int j = k; j < k + 4; ++j) sum += j < p.norm.parts ? from[j] : 0;
        });
        sum = neighbours_sum(sum, 32);
        if (lane == 0) factor[i] = rsqrtf(sum / p.n_in + p.norm.eps);
      }
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int j = 0; j < kGroups; ++j)
        parts[(first & tile) != 0][warp][g + 8 * h][j * kGroup + t] = sums[j][h][0] + sums[j][h][3];
    }
    __syncthreads();
    if (!at.there) continue;
    const auto total = [&](int row) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) sum += parts[(first & tile) != 0][i][at.token][row];
      return p.norm.weight ? factor[at.token] * sum : sum;
    };
    const int row = at.column - deal.begin(block) - first;  // of the tile
    const int64_t place = at.index(deal);
    T* const out = static_cast<T*>(p.out) + place;
    float value = total(row);
    if (p.bias) value += to_float(static_cast<const T*>(p.bias)[at.column]);
    switch (p.epilogue) {
      case Epilogue::store:
        *out = from_float<T>(value);
        break;
      case Epilogue::store_fp32:
        static_cast<float*>(p.out)[place] = value;
        break;
      case Epilogue::silu_mul: {
        const float up_bias = p.bias ? to_float(static_cast<const T*>(p.bias)[deal.n + at.column]) : 0;
        *out = from_float<T>(value / (1 + expf(-value)) * (total(kRows / 2 + row) + up_bias));
        break;
      }
      case Epilogue::add: {
        T pair[2];
        memcpy(pair, residual + threadIdx.x, sizeof pair);
        const T rounded = from_float<T>(value + to_float(pair[place % 2]));
        const float v = to_float(rounded);
        *out = rounded;
        if (p.next.weight)
          static_cast<T*>(p.next.scaled)[place] =
              scaled<T>(v, to_float(static_cast<const T*>(p.next.weight)[at.column]));
        square += v * v;
        break;
      }
    }
  }
  if (!p.next.weight) return;
  square = neighbours_sum(square, tile);
  const int token = static_cast<int>(threadIdx.x) / tile;
  if (threadIdx.x % tile == 0 && token < p.n_rows) p.next.squares[token * kNormParts + blockIdx.x] = square;
}

/// A warp for each part of a row: rows are few, and so all parts are read at once.
template <typename T>
__global__ void __launch_bounds__(kThreads) split_norm_kernel(const T* x, SplitNorm norm, Deal deal) {
  wait_for_previous();
  const int lane = threadIdx.x % 32, part = static_cast<int>(blockIdx.y * kWarps + threadIdx.x / 32);
  if (part >= deal.blocks) return;
  const int64_t row = int64_t{blockIdx.x} * deal.n;
  float square = 0;
  for (int i = lane; i < deal.count(part); i += 32) {
    const int column = deal.begin(part) + i;
    const float v = to_float(x[row + column]);
    static_cast<T*>(norm.scaled)[row + column] =
        scaled<T>(v, to_float(static_cast<const T*>(norm.weight)[column]));
    square += v * v;
  }
  square = neighbours_sum(square, 32);
  if (lane == 0) norm.squares[blockIdx.x * kNormParts + part] = square;
}

bool takes_tiles(int columns, Device device) { return columns % 4 == 0 && has_sm90a(device); }

}  // namespace

int fused_rows(int, DType, Device device) {
  if (has_sm90a(device)) return kFusedRows;
  return attribute(cudaDevAttrComputeCapabilityMajor, device) >= 8 ? kFewRows : 0;
}

int norm_parts(int n, int n_rows, DType dtype, Device device) {
  return takes_tiles(n, device) ? tiled_norm_parts(n, n_rows, dtype, device) : Deal(n, device).blocks;
}

void split_norm(const void* x, const SplitNorm& norm, int n_rows, int n, DType dtype, Stream& stream) {
  if (takes_tiles(n, stream.device())) return tiled_norm(x, norm, n_rows, n, dtype, stream);
  const Deal deal(n, norm.parts);
  const dim3 grid(n_rows, (deal.blocks + kWarps - 1) / kWarps);
  with_16_bits(dtype, [&](auto type) {
    using T = decltype(type);
    launch_dependent(split_norm_kernel<T>, grid, kThreads, {0, kSmallShare}, stream, static_cast<const T*>(x),
                     norm, deal);
  });
}

void fused_linear(const FusedLinear& p, DType dtype, Stream& stream) {
  const int columns = p.epilogue == Epilogue::silu_mul ? p.n_out / 2 : p.n_out;
  // A head is two tiles a multiprocessor, and between them nothing is under way: its few rows are faster without. So they
  // are, to the last bit, what they are as picked rows, which only the kernel here takes.
  const bool few_logits = p.epilogue == Epilogue::store_fp32 && p.n_rows <= 8;
  if (!p.row && !few_logits && takes_tiles(columns, stream.device())) return tiled_linear(p, dtype, stream);
  const Deal deal(columns, stream.device());
  PI_CHECK(!p.next.weight || p.next.parts == deal.blocks, p.next.parts, " parts of a norm, not ",
           deal.blocks);
  for (int first = 0; first < p.n_rows; first += kFewRows) {
    FusedLinear few = p;
    few.n_rows = std::min(p.n_rows - first, kFewRows);
    if (first > 0) {  // only here are there more rows: a head's, of some tokens or of an odd vocabulary
      PI_CHECK(p.epilogue == Epilogue::store_fp32, p.n_rows, " rows of ", columns, " columns");
      few.out = static_cast<float*>(p.out) + int64_t{first} * columns;
      if (p.row) {
        few.row = p.row + first;
      } else {
        few.x = static_cast<const uint16_t*>(p.x) + int64_t{first} * p.n_in;
        few.norm.squares = p.norm.squares + first * kNormParts;
      }
    }
    with_16_bits(dtype, [&](auto type) {
      using T = decltype(type);
      const auto launch = [&]<int kHalves>(std::integral_constant<int, kHalves>) {
        const int squares = p.norm.weight && kCopiesSquares<kHalves> ? few.n_rows * kNormParts : 0;
        launch_dependent(fused_linear_kernel<T, kHalves>, deal.blocks, kThreads,
                         {(kThreads + kFewRows + squares) * sizeof(float), kSmallShare}, stream, few, deal);
      };
      if (few.n_rows <= 8)
        launch(std::integral_constant<int, 1>{});
      else
        launch(std::integral_constant<int, 2>{});
    });
  }
}

}  // namespace pipeinfer::kernels::cuda

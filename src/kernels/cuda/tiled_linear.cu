// Products of up to 64 rows on sm_90, at the speed at which the weight can be read. A cluster of blocks owns a tile of the
// weight's rows, each of its blocks a range of the columns (k), and there is a block a multiprocessor. So a block has x's
// columns of that range alone to read, once, which is little beside its weights. What the blocks of a cluster have summed
// they join through their shared memory.
//
// A warp keeps a ring of boxes full, by tensor copies (TMA); warpgroups multiply straight out of it (wgmma), with the
// weight's rows as a product's rows and x's as its columns. Weights depend on no kernel: the next kernel's blocks, for
// which there is room beside this one's, have their rings full of them by the time that this one's sums are written
// (launch.cuh).
#include <algorithm>
#include <array>
#include <cstdlib>

#include "../ops.h"
#include "launch.cuh"
#include "pipeinfer/base/check.h"
#include "split_norm.cuh"
#include "tiled_linear.h"
#include "tiles.cuh"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kBoxBytes = kBoxColumns * 2;  // of a row
constexpr int kMostStages = 6;              // of the ring
constexpr int kGroups = 3;                  // most warpgroups that multiply, 64 rows of the weight each
constexpr int kMostRows = 152;  // of the weight, in a slot: two blocks' rings find room in a multiprocessor
constexpr int kMostParts = 8;   // blocks of a cluster
// Bytes of a multiprocessor's shared memory: two times the first are too much, both of them fit.
constexpr int kMoreThanHalf = 116000, kLessThanHalf = 115000;
constexpr int kOthers = 64;                // threads: a warp that copies, and one for the norm
constexpr int kRegisters = 64;             // of a thread, at most
constexpr int kStride = kGroups * 64 + 4;  // of a token's sums: its banks differ from the next one's

/// How n columns of out are dealt: each cluster has a tile of them, and each of its blocks a part of k.
struct Deal {
  int n, tile, clusters, parts;
  bool pairs;  // a tile has its columns' gates, then their ups

  /// `most_clusters(parts)`: clusters of so many blocks that have a multiprocessor a block.
  template <typename MostClusters>
  Deal(int n, Epilogue epilogue, MostClusters most_clusters) : n(n), pairs(epilogue == Epilogue::silu_mul) {
    const int most_rows = epilogue == Epilogue::add ? 32 * 4 : kMostRows;  // a token's norm is a warp's
    for (int rounds = 1;; ++rounds) {
      for (parts = kMostParts; parts > 0; parts /= 2) {
        const int most = most_clusters(parts) * rounds;
        if (most == 0) continue;
        tile = ((n + most - 1) / most + 3) / 4 * 4;  // a thread writes four
        clusters = (n + tile - 1) / tile;
        if (rows() <= most_rows) return;
      }
    }
  }
  __host__ __device__ int half() const { return (tile + 7) / 8 * 8; }           // whole groups of the swizzle
  __host__ __device__ int rows() const { return pairs ? 2 * half() : half(); }  // of the weight, in a slot
  __host__ __device__ int consumers() const { return (rows() + 63) / 64 * 128; }  // threads that multiply
};

/// What lies in shared memory: the ring, of weights [rows, 64] and x [tokens, 64] a slot, whose place the sums [tokens,
/// kStride] take when it has served; a pair of barriers a slot; and the norm's factors [tokens].
template <int kTokens>
struct Layout {
  static constexpr int kSums = kTokens * kStride * 4, kFactors = kTokens * static_cast<int>(sizeof(float));
  static constexpr int kBarriers = 2 * kMostStages * static_cast<int>(sizeof(Barrier));
  // A warpgroup reads 64 rows, of which up to 63 lie behind the weights: in x, and where that is shorter behind it.
  static constexpr int kBehind = (64 - kTokens) * kBoxBytes;
  int slot, stages, ring;

  /// At most `limit` bytes, but for the sums.
  __host__ __device__ Layout(const Deal& deal, int limit) : slot((deal.rows() + kTokens) * kBoxBytes) {
    stages = (limit - kBehind - kBarriers - kFactors) / slot;
    stages = stages < kMostStages ? stages : kMostStages;
    ring = stages * slot + kBehind > kSums ? stages * slot + kBehind : kSums;
  }
  __host__ __device__ int bytes() const { return ring + kBarriers + kFactors; }
};

/// A norm's share of four neighbours: writes them times its weight, returns their squares' sum.
template <typename T>
__device__ inline float write_scaled(T* to, const float (&v)[4], typename Word<4 * sizeof(T)>::type weight) {
  float square = 0, factors[4];
  load(factors, reinterpret_cast<const T*>(&weight));
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    square = fmaf(v[j], v[j], square);
    factors[j] = to_float(scaled<T>(v[j], factors[j]));
  }
  store(to, factors);
  return square;
}

/// split_norm, with the same sums as those of the products that add: a warp a tile of a token.
template <typename T>
__global__ void __launch_bounds__(32) tiled_norm_kernel(const T* x, SplitNorm norm, Deal deal) {
  using Row = typename Word<4 * sizeof(T)>::type;
  const int of_tile = static_cast<int>(threadIdx.x) * 4,
            column = static_cast<int>(blockIdx.x) * deal.tile + of_tile;
  const int64_t place = int64_t{blockIdx.y} * deal.n + column;
  const bool there = of_tile < deal.tile && column < deal.n;
  Row weight{};
  if (there) weight = *reinterpret_cast<const Row*>(static_cast<const T*>(norm.weight) + column);
  wait_for_previous();
  float square = 0, v[4];
  if (there) {
    load(v, x + place);
    square = write_scaled(static_cast<T*>(norm.scaled) + place, v, weight);
  }
  square = neighbours_sum(square, 32);
  if (threadIdx.x == 0) norm.squares[blockIdx.y * kNormParts + blockIdx.x] = square;
}

/// Four neighbouring columns of out, of which a thread finishes some tokens.
template <typename T>
struct Quad {
  using Row = typename Word<4 * sizeof(T)>::type;
  int of_tile, column;  // its first column, of the tile and of out
  bool there;

  __device__ Quad(const Deal& deal, int of_tile)
      : of_tile(of_tile),
        column(static_cast<int>(blockIdx.x) / deal.parts * deal.tile + of_tile),
        there(of_tile < deal.tile && column < deal.n) {}
  __device__ int64_t place(const Deal& deal, int token) const { return int64_t{token} * deal.n + column; }

  /// Writes out, and what a norm after it needs; returns the sum of squares of what was written. `before`: what out held,
  /// `scale`: the weight of that norm.
  __device__ float write(const FusedLinear& p, const Deal& deal, int token, float4 sum, float4 up,
                         float factor, Row before, Row scale) const {
    float v[4] = {sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
    float ups[4] = {up.x * factor, up.y * factor, up.z * factor, up.w * factor}, other[4];
    if (p.bias) {
      load(other, static_cast<const T*>(p.bias) + column);
      for (int j = 0; j < 4; ++j) v[j] += other[j];
    }
    if (p.bias && deal.pairs) {
      load(other, static_cast<const T*>(p.bias) + deal.n + column);
      for (int j = 0; j < 4; ++j) ups[j] += other[j];
    }
    if (p.epilogue == Epilogue::store_fp32) {
      store(static_cast<float*>(p.out) + place(deal, token), v);
      return 0;
    }
    load(other, reinterpret_cast<const T*>(&before));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (deal.pairs) v[j] = __fdividef(v[j], 1 + __expf(-v[j])) * ups[j];
      v[j] = to_float(from_float<T>(v[j] + other[j]));
    }
    store(static_cast<T*>(p.out) + place(deal, token), v);
    if (!p.next.weight) return 0;
    return write_scaled(static_cast<T*>(p.next.scaled) + place(deal, token), v, scale);
  }
};

/// Four neighbouring sums, of all blocks of the cluster.
__device__ inline float4 total(const float* own, int parts) {
  if (parts == 1) return *reinterpret_cast<const float4*>(own);
  constexpr int kAtOnce = 4;
  float4 sum{};
#pragma unroll 1
  for (int first = 0; first < parts; first += kAtOnce) {
    float4 v[kAtOnce]{};
#pragma unroll
    for (int q = 0; q < kAtOnce; ++q) {
      if (first + q < parts) v[q] = load_from_cluster(own, first + q);
    }
#pragma unroll
    for (int q = 0; q < kAtOnce; ++q) sum.x += v[q].x, sum.y += v[q].y, sum.z += v[q].z, sum.w += v[q].w;
  }
  return sum;
}

template <typename T, int kTokens>
__global__ void __maxnreg__(kRegisters)
    tiled_linear_kernel(const __grid_constant__ TileMap weight, const __grid_constant__ TileMap x,
                        FusedLinear p, Deal deal, Layout<kTokens> layout) {
  extern __shared__ uint4 shared[];
  char* const ring = reinterpret_cast<char*>(shared);
  float* const sums = reinterpret_cast<float*>(ring);
  Barrier* const full = reinterpret_cast<Barrier*>(ring + layout.ring);
  Barrier* const empty = full + kMostStages;
  float* const factor = reinterpret_cast<float*>(empty + kMostStages);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int part = cluster_rank(), cluster = static_cast<int>(blockIdx.x) / deal.parts;
  const int steps = (p.n_in + kBoxColumns - 1) / kBoxColumns;
  const int begin = steps * part / deal.parts, n = steps * (part + 1) / deal.parts - begin;
  const int rows = deal.rows(), stages = layout.stages, consumers = deal.consumers();
  const int copy_warp = consumers / 32, norm_warp = copy_warp + 1;

  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      init_barrier(full + i, 1);
      init_barrier(empty + i, consumers / 128);
    }
  }
  __syncthreads();

  // Sums are there, and the factors.
  const auto sums_are_there = [&] {
    if (deal.parts > 1) {
      sync_cluster();
    } else {
      sync_threads(2, consumers + 32);
    }
  };
  if (warp == copy_warp) {
    const auto each_box = [&](int i, auto&& f) {  // of the weight: its column, its row, its row in a slot
      const int column = (begin + i) * kBoxColumns, row = cluster * deal.tile;
      f(column, row, 0);
      if (deal.pairs) f(column, deal.n + row, deal.half());
    };
    const auto copy_weight = [&](int i, int at) {
      char* const to = ring + at * layout.slot;
      arrive_expecting(full + at, (deal.tile * (deal.pairs ? 2 : 1) + kTokens) * kBoxBytes);
      each_box(i, [&](int column, int row, int place) {
        copy_box(to + place * kBoxBytes, weight, row, column, full + at);
      });
    };
    const auto copy_x = [&](int i, int at) {
      copy_box(ring + at * layout.slot + rows * kBoxBytes, x, 0, (begin + i) * kBoxColumns, full + at);
    };
    if (lane == 0) {
      // x waits behind what is asked for before it: so the ring's last weights come after it, and with them, into the L2
      // cache, the first that find no room in the ring.
      const int ahead = min(n, stages), early = max(ahead - 1, 0);
      for (int i = 0; i < early; ++i) copy_weight(i, i);
      wait_for_previous();
      order_before_global_copies();
      for (int i = 0; i < early; ++i) copy_x(i, i);
      for (int i = early; i < ahead; ++i) copy_weight(i, i), copy_x(i, i);
      if (ahead < n) each_box(ahead, [&](int column, int row, int) { prefetch_box(weight, row, column); });
      Turn turn;
      for (int i = ahead; i < n; ++i, turn.next(stages)) {
        // The next kernel's blocks take a while to start. Let too late, they leave the memory idle meanwhile; too soon,
        // they take it from this one, and have nothing left to ask for when it is done.
        if (n - i <= stages - 2) let_next_start();
        wait_phase(empty + turn.slot, turn.parity);
        copy_weight(i, turn.slot);
        copy_x(i, turn.slot);
      }
      let_next_start();
    }
    __syncwarp();
    if (deal.parts > 1) sums_are_there();
  } else if (warp == norm_warp) {
    wait_for_previous();
    for (int token = lane; p.norm.weight && token < p.n_rows; token += 32) {
      const float* const squares = p.norm.squares + token * kNormParts;
      float sum = 0;
#pragma unroll 8
      for (int k = 0; k < p.norm.parts; ++k) sum += squares[k];
      factor[token] = rsqrtf(sum / p.n_in + p.norm.eps);
    }
    __syncwarp();
    sums_are_there();
  } else if (warp > norm_warp) {  // these only take registers: see launch()
    if (deal.parts > 1) sums_are_there();
  } else {
    // Each block of a cluster finishes some tokens, a thread four columns of some of those. A norm that follows needs sums
    // over a token: its columns are a warp's.
    const int share = (p.n_rows + deal.parts - 1) / deal.parts,
              lanes = p.epilogue == Epilogue::add ? 32 : deal.tile / 4;
    const int at_once = consumers / lanes, thread = static_cast<int>(threadIdx.x);
    const int first = part * share + thread / lanes;
    const int end = thread < at_once * lanes ? min((part + 1) * share, p.n_rows) : 0;
    const Quad<T> quad(deal, thread % lanes * 4);
    using Row = typename Quad<T>::Row;
    Row before[2]{}, scale{};
    const auto fetch = [&](int token) {
      return token < end && quad.there && p.epilogue == Epilogue::add
                 ? *reinterpret_cast<const Row*>(static_cast<const T*>(p.out) + quad.place(deal, token))
                 : Row{};
    };
    wait_for_previous();
    // What is needed at the end is asked for long before.
#pragma unroll
    for (int i = 0; i < 2; ++i) before[i] = fetch(first + i * at_once);
    if (p.next.weight && quad.there)
      scale = *reinterpret_cast<const Row*>(static_cast<const T*>(p.next.weight) + quad.column);

    const int group = warp / 4;
    float c[kTokens / 2] = {};
    Turn turn;
    for (int i = 0; i < n; ++i, turn.next(stages)) {
      const char* const slot = ring + turn.slot * layout.slot;
      wait_phase(full + turn.slot, turn.parity);
      begin_products();
#pragma unroll
      for (int k = 0; k < kBoxBytes; k += 32)
        multiply_boxes<T, kTokens>(c, slot + group * 64 * kBoxBytes + k, slot + rows * kBoxBytes + k);
      end_products();
      wait_products<0>();  // the sooner the slot is free again, the more is under way
      if (threadIdx.x % 128 == 0) arrive(empty + turn.slot);
    }
    sync_threads(1, consumers);  // the ring has served
    float* const to = sums + group * 64 + warp % 4 * 16 + lane / 4 + lane % 4 * 2 * kStride;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) to[(8 * j + e % 2) * kStride + e / 2 * 8] = c[4 * j + e];
    }
    sums_are_there();

    const float* own = sums + first * kStride + quad.of_tile;
#pragma unroll 1
    for (int token = first; token < end; token += at_once, own += at_once * kStride) {
      float square = 0;
      if (quad.there) {
        const float4 sum = total(own, deal.parts),
                     up = deal.pairs ? total(own + deal.half(), deal.parts) : sum;
        square = quad.write(p, deal, token, sum, up, p.norm.weight ? factor[token] : 1, before[0], scale);
      }
      before[0] = before[1];
      before[1] = fetch(token + 2 * at_once);
      if (!p.next.weight) continue;
      square = neighbours_sum(square, 32);
      if (lane == 0) p.next.squares[token * kNormParts + cluster] = square;
    }
  }
  if (deal.parts > 1) {
    leave_cluster();
  } else {
    __syncthreads();  // who has nothing to do stays, with its registers
  }
}

template <typename T, int kTokens>
Deal deal_of(int n, Epilogue epilogue, Device device) {
  static const auto most = [&] {  // the GPUs of a process are alike
    std::array<int, kMostParts + 1> most{};
    for (int parts = 1; parts <= kMostParts; parts *= 2)
      most[parts] = std::min(
          attribute(cudaDevAttrMultiProcessorCount, device) / parts,
          most_clusters(tiled_linear_kernel<T, kTokens>, kGroups * 128 + kOthers, kMoreThanHalf, parts));
    return most;
  }();
  return Deal(n, epilogue, [](int parts) { return most[parts]; });
}

/// Threads of a block of which no two find registers in a multiprocessor: each of its four parts has a quarter of them, and
/// of a block every fourth warp.
template <typename... P>
int more_than_half_of_registers(void (*kernel)(P...)) {
  constexpr int kOfPart = 65536 / 4;
  const int of_warp = (code_of(kernel).numRegs + 7) / 8 * 8 * 32;
  return (kOfPart / of_warp / 2 + 1) * 4 * 32;
}

template <typename T, int kTokens>
void launch(const FusedLinear& p, Stream& stream) {
  const Deal deal = deal_of<T, kTokens>(p.epilogue == Epilogue::silu_mul ? p.n_out / 2 : p.n_out, p.epilogue,
                                        stream.device());
  PI_CHECK(!p.next.weight || p.next.parts == deal.clusters, p.next.parts, " parts of a norm, not ",
           deal.clusters);
  // Blocks of one kernel two to a multiprocessor would leave others without any, and yet there must be room for one beside
  // one of the kernel before. So those that add have more than half of the shared memory and less than half of the
  // registers, and those between them the other way round.
  const bool adds = p.epilogue == Epilogue::add;
  const Layout<kTokens> layout(deal, adds ? kMoreThanHalf : kLessThanHalf);
  const int bytes = adds ? std::max(layout.bytes(), kMoreThanHalf) : layout.bytes();
  const auto kernel = tiled_linear_kernel<T, kTokens>;
  allow_shared(kernel, bytes);
  static const int too_many_for_two = more_than_half_of_registers(kernel);
  const int threads = std::max(deal.consumers() + kOthers, adds ? 0 : too_many_for_two);
  launch_dependent(kernel, Grid(deal.clusters * deal.parts, deal.parts), threads, bytes, stream,
                   make_tile_map(p.weight, p.n_out, p.n_in, deal.tile),
                   make_tile_map(p.x, p.n_rows, p.n_in, kTokens), p, deal, layout);
}

/// Calls f with the element type and the tokens of the kernel for so many rows.
template <typename F>
auto with_kernel(int n_rows, DType dtype, F&& f) {
  return with_16_bits(dtype, [&](auto type) {
    return n_rows <= 8    ? f(type, std::integral_constant<int, 8>{})
           : n_rows <= 16 ? f(type, std::integral_constant<int, 16>{})
           : n_rows <= 32 ? f(type, std::integral_constant<int, 32>{})
                          : f(type, std::integral_constant<int, 64>{});
  });
}

}  // namespace

bool has_sm90a(Device device) {
  static const bool wanted = !std::getenv("PIPEINFER_UNTILED");
  if (!wanted || attribute(cudaDevAttrComputeCapabilityMajor, device) != 9) return false;
  static const bool built = [] {
    cudaFuncAttributes code{};
    if (cudaFuncGetAttributes(&code, tiled_linear_kernel<__half, 64>) == cudaSuccess) return true;
    cudaGetLastError();
    return false;
  }();
  return built;
}

int tiled_norm_parts(int n, int n_rows, DType dtype, Device device) {
  return with_kernel(n_rows, dtype, [&](auto type, auto tokens) {
    return deal_of<decltype(type), tokens()>(n, Epilogue::add, device).clusters;
  });
}

void tiled_norm(const void* x, const SplitNorm& norm, int n_rows, int n, DType dtype, Stream& stream) {
  with_kernel(n_rows, dtype, [&](auto type, auto tokens) {
    using T = decltype(type);
    const Deal deal = deal_of<T, tokens()>(n, Epilogue::add, stream.device());
    PI_CHECK(norm.parts == deal.clusters, norm.parts, " parts of a norm, not ", deal.clusters);
    launch_dependent(tiled_norm_kernel<T>, dim3(deal.clusters, n_rows), 32, 0, stream,
                     static_cast<const T*>(x), norm, deal);
  });
}

void tiled_linear(const FusedLinear& p, DType dtype, Stream& stream) {
  with_kernel(p.n_rows, dtype, [&](auto type, auto tokens) { launch<decltype(type), tokens()>(p, stream); });
}

}  // namespace pipeinfer::kernels::cuda

// Attention of neighbouring tokens as in attention_prefill.cu, on sm_90: products are warpgroups' (wgmma), which read keys
// and values where bulk copies put them. An octet of the cache is made of groups of 8 x 8 elements, as these products take
// them: keys as rows, values as columns. What a head dimension has beyond whole groups (100: 4 columns) stays with mma.
//
// A block takes 128 tokens of one query head, a warpgroup 64 of them, and each goes through the tiles at its own pace: while
// one multiplies, another makes weights of its scores.
#include "kv.cuh"
#include "launch.cuh"
#include "prefill_work.cuh"
#include "tiles.cuh"

namespace pipeinfer::kernels::cuda {
using namespace prefill;

namespace {

constexpr int kGroupRows = 64;  // queries of a warpgroup
constexpr int kBlockRows = 2 * kGroupRows, kBlockWarps = kBlockRows / 16;
constexpr int kGroupBytes = 128;             // of 8 positions and 8 columns
constexpr int kStepBytes = 2 * kGroupBytes;  // of 16 columns in an octet

/// What lies in shared memory: queries, as octets of whole 16 columns, and a ring of tiles of K and V.
template <int D>
struct Memory {
  static constexpr int kSteps = D / 16, kQueryOctet = kSteps * kStepBytes;
  static constexpr int kQueries = kBlockRows / 8 * kQueryOctet;
  static constexpr int kTile = kKeys / kOctet * Octet<D>::kBytes;
  static constexpr int kSlots = 3;
  static constexpr int kBlocks = D == 96 || D > 100 ? 1 : 2;  // of a multiprocessor: what its registers hold
  static constexpr int kBytes = kQueries + kSlots * 2 * kTile;
};

/// The block's queries on their way to shared memory, zeros where there are no tokens.
template <typename T, int D>
__device__ inline void fetch_queries(char* to, const T* from, int64_t pitch, int n) {
  constexpr int kWords = Memory<D>::kSteps * 4;  // of 4 elements: a head's row is a multiple of 8 bytes
  for (int i = threadIdx.x; i < kBlockRows * kWords; i += kBlockWarps * 32) {
    const int row = i / kWords, word = i % kWords;
    copy_to_shared<8>(
        to + row / 8 * Memory<D>::kQueryOctet + word / 2 * kGroupBytes + row % 8 * 16 + word % 2 * 8,
        from + row * pitch + word * 4, row < n);
  }
  commit_copies();
}

/// A warp's operands a of the columns behind them, as Strip has them.
template <typename T, int D>
__device__ inline void load_last_queries(uint32_t (&query)[2], const T* from, int64_t pitch, int n) {
  const int column = D / 16 * 16 + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = static_cast<int>(threadIdx.x) % 32 / 4 + r * 8;
    query[r] = row < n && column < D ? *reinterpret_cast<const uint32_t*>(from + row * pitch + column) : 0;
  }
}

template <typename T, int D>
__device__ inline void multiply_keys(float (&score)[kKeys / 8][4], const char* queries,
                                     const uint32_t (&last)[2], const char* keys) {
  const Groups a(queries, Memory<D>::kQueryOctet, kGroupBytes), b(keys, Octet<D>::kBytes, kGroupBytes);
  begin_products();
#pragma unroll
  for (int i = 0; i < Memory<D>::kSteps; ++i)
    multiply_groups<T, kKeys>(reinterpret_cast<float(&)[kKeys / 2]>(score), a + i * kStepBytes,
                              b + i * kStepBytes);
  end_products();
  wait_products<0>();
  if constexpr (D % 16 != 0) {
#pragma unroll
    for (int first = 0; first < kKeys / 8; first += kStep / 8) {
      uint32_t b[kStep / 8];
      load_last_keys<D>(b, keys + first * Octet<D>::kBytes);
#pragma unroll
      for (int j = 0; j < kStep / 8; ++j) mma_16x8x8<T>(score[first + j], last, b[j]);
    }
  }
}

/// sum += weights * values, of whole groups of columns from `kFirst` on. Where `mixed`, only rows that are `own` take part,
/// for the sake of a NaN among another sequence's values: their sums come aside first, few at a time to save registers. Else
/// the caller waits.
template <bool mixed, int kFirst, typename T, int D>
__device__ inline void multiply_groups_of_values(Strip<T, D>& strip, const uint32_t (&weight)[kKeys / 16][4],
                                                 Groups values, const bool (&own)[2]) {
  constexpr int kLeft = Octet<D>::kGroups - kFirst;
  if constexpr (kLeft > 0) {
    constexpr int kColumns = kLeft >= 8 && !mixed ? 64 : kLeft >= 4 && !mixed ? 32 : kLeft >= 2 ? 16 : 8;
    const auto multiply = [&](float(&sum)[kColumns / 2]) {
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i)
        multiply_groups<T, kColumns>(sum, weight[i],
                                     values + (i * 2 * Octet<D>::kBytes + kFirst * kGroupBytes));
    };
    if constexpr (mixed) {
      float part[kColumns / 8][4] = {};
      begin_products();
      multiply(reinterpret_cast<float(&)[kColumns / 2]>(part));
      end_products();
      wait_products<0>();
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) strip.sum[kFirst + j][e] += own[e / 2] ? part[j][e] : 0;
      }
    } else {
      multiply(reinterpret_cast<float(&)[kColumns / 2]>(strip.sum[kFirst]));
    }
    multiply_groups_of_values<mixed, kFirst + kColumns / 8>(strip, weight, values, own);
  }
}

template <bool mixed, typename T, int D>
__device__ inline void multiply_values(Strip<T, D>& strip, const uint32_t (&weight)[kKeys / 16][4],
                                       const char* values, const bool (&own)[2]) {
  if constexpr (!mixed) begin_products();
  multiply_groups_of_values<mixed, 0>(strip, weight, Groups(values, kGroupBytes, Octet<D>::kBytes), own);
  if constexpr (!mixed) end_products();
  if constexpr (Octet<D>::kTail != 0) {
    float part[4] = {};
#pragma unroll
    for (int i = 0; i < kKeys / kStep; ++i) {
      uint32_t b[kStep / 8];
      load_values<D>(b, values + i * (kStep / 8) * Octet<D>::kBytes, Octet<D>::kGroups);
      mma_16x8x16<T>(part, weight[2 * i], {b[0], b[1]});
      mma_16x8x16<T>(part, weight[2 * i + 1], {b[2], b[3]});
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) strip.sum[Octet<D>::kGroups][e] += !mixed || own[e / 2] ? part[e] : 0;
  }
  if constexpr (!mixed) wait_products<0>();
}

/// A warpgroup makes zeros of a tile's values from position n on: weights of 0 would not protect from what is there.
template <int D>
__device__ inline void clear_values(char* values, int n) {
  using O = Octet<D>;
  constexpr int kWords = O::kBytes / 16, kWhole = O::kTailAt / 16;
  for (int i = n / kOctet * kWords + static_cast<int>(threadIdx.x) % 128; i < kKeys / kOctet * kWords;
       i += 128) {
    const int octet = i / kWords * kOctet, word = i % kWords;
    uint2* const halves = reinterpret_cast<uint2*>(values + i * 16);
#pragma unroll
    for (int h = 0; h < 2; ++h) {  // of one position, or a tail's of two
      if (octet + (word < kWhole ? word % 8 : (word - kWhole) * 2 + h) >= n) halves[h] = uint2{0, 0};
    }
  }
  order_before_copies();
  sync_threads(1 + static_cast<int>(threadIdx.x) / 128, 128);
}

template <typename T, int D>
__global__ void __launch_bounds__(kBlockWarps * 32, Memory<D>::kBlocks)
    prefill_groups_kernel(T* out, const T* qkv, KvLayer cache, TokenTable tokens, int n_heads, float scale) {
  using M = Memory<D>;
  using O = Octet<D>;
  extern __shared__ Line shared[];
  __shared__ Barrier there[M::kSlots], used[M::kSlots];
  __shared__ Tokens<kBlockRows> own;
  char* const queries = reinterpret_cast<char*>(shared);
  char* const tiles = queries + M::kQueries;
  const int head = blockIdx.x, kv_head = head / (n_heads / cache.n_kv_heads);
  const int tile_of_tokens = gridDim.y - 1 - blockIdx.y;  // long contexts first
  const int t0 = tokens.n_single + tile_of_tokens * kBlockRows;
  cache.head_dim = D;  // known to the compiler
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int first_row = warp * 16, first_of_group = warp / 4 * kGroupRows;

  if (threadIdx.x == 0) {
    for (int i = 0; i < M::kSlots; ++i) {
      init_barrier(there + i, kBlockWarps * copy_arrivals());
      init_barrier(used + i, kBlockWarps);
    }
  }
  wait_for_previous();
  const int64_t pitch = int64_t{n_heads + 2 * cache.n_kv_heads} * D;
  const T* const rows = qkv + t0 * pitch + head * D;
  fetch_queries<T, D>(queries, rows, pitch, tokens.n_tokens - t0);
  uint32_t last_query[2];
  load_last_queries<T, D>(last_query, rows + first_row * pitch, pitch, tokens.n_tokens - t0 - first_row);
  own.read(tokens, t0);
  wait_copies<0>();
  order_before_copies();
  __syncthreads();

  const int count = own.count;
  KeyTile tile;
  tile.end = 0;
  tile.enter_run(own, tokens);
  // Each warp has an octet of K and V copied of every tile. In which block it is, it looks up a tile before.
  static_assert(kKeys / kOctet == kBlockWarps);
  KeyTile ahead = tile;
  Turn filling;
  int block = 0, in_block = 0, bytes = 0;  // none: the tile ends before
  const auto look_up = [&] {
    const int position = ahead.first + warp * kOctet;
    bytes = ahead.begin < count && position < ahead.keys ? O::kBytes : 0;
    if (bytes == 0) return;
    const unsigned index = unsigned(position) / unsigned(cache.block_size);
    block = blocks_of(tokens, ahead.slot)[index];
    in_block = position - static_cast<int>(index) * cache.block_size;
  };
  const auto fetch = [&] {
    if (ahead.begin >= count) return;
    wait_phase(used + filling.slot, filling.parity ^ 1);
    const T* const from = octet_in_block<T>(cache, block, in_block, kv_head);
    char* const to = tiles + filling.slot * 2 * M::kTile + warp * O::kBytes;
    copy_pieces(to + lane * M::kTile, from + lane * v_offset(cache), lane < 2 ? bytes : 0, 2 * bytes,
                there + filling.slot);
    filling.next(M::kSlots);
    ahead.next(own, tokens);
    look_up();
  };
  look_up();
  for (int i = 0; i < M::kSlots - 1; ++i) fetch();

  Strip<T, D> strip[1];
  for (Turn turn; tile.begin < count; turn.next(M::kSlots), tile.next(own, tokens)) {
    const int begin = max(first_of_group, tile.begin), end = min(first_of_group + kGroupRows, tile.end);
    const bool sees = begin < end && end + tile.shift > 0;
    const bool mixed = end - begin < kGroupRows;  // not all of the warpgroup's tokens are of the run
    const bool mine[2] = {tile.has(first_row + lane / 4), tile.has(first_row + lane / 4 + 8)};
    char* const keys = tiles + turn.slot * 2 * M::kTile;
    uint32_t weight[1][kKeys / 16][4];
    wait_phase(there + turn.slot, turn.parity);
    if (sees) {
      float score[1][kKeys / 8][4] = {};
      multiply_keys<T, D>(score[0], queries + first_of_group / 8 * M::kQueryOctet, last_query, keys);
      if (mixed || kKeys - 1 > begin + tile.shift) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = first_row + lane / 4 + e / 2 * 8;
          const int visible = mine[e / 2] ? row + tile.shift - lane % 4 * 2 - e % 2 : -1;
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) {
            if (j * 8 > visible) score[0][j][e] = -INFINITY;
          }
        }
      }
      weigh(weight, strip, score, scale);
    }
    fetch();
    if (sees) {
      char* const values = keys + M::kTile;
      if (tile.keys - tile.first < kKeys) clear_values<D>(values, tile.keys - tile.first);
      if (mixed) {
        multiply_values<true>(strip[0], weight[0], values, mine);
      } else {
        multiply_values<false>(strip[0], weight[0], values, mine);
      }
    }
    __syncwarp();
    if (lane == 0) arrive(used + turn.slot);
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + lane / 4 + r * 8;
    T* to = out + (int64_t{own.first + row} * n_heads + head) * D;
    strip[0].store_row(r, row < count ? to : nullptr);
  }
}

}  // namespace

bool attend_groups(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                   float scale, DType dtype, Stream& stream) {
  if (dtype == DType::fp32 || !has_sm90a(stream.device()) || !aligned(16, qkv, cache.data)) return false;
  bool done = false;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (kHasMma<T>) {
      with_head_dim(cache.head_dim, [&](auto d) {
        const auto kernel = prefill_groups_kernel<T, d()>;
        constexpr int kBytes = Memory<d()>::kBytes;
        allow_shared(kernel, kBytes);
        const dim3 grid(n_heads, (tokens.n_tokens - tokens.n_single + kBlockRows - 1) / kBlockRows);
        launch_dependent(kernel, grid, kBlockWarps * 32, kBytes, stream, static_cast<T*>(out),
                         static_cast<const T*>(qkv), cache, tokens, n_heads, scale * 1.44269504f);
        done = true;
      });
    }
  });
  return done;
}

}  // namespace pipeinfer::kernels::cuda

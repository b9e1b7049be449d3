// Slots and sampling: a block per row. The definition of a draw is in sampling_math.h; here nothing is sorted: the
// candidate at which a cumulated weight passes a target is found digit by digit from the top (a radix select), with
// weights as integers, so that the order of the atomics does not matter.
#include "../ops.h"
#include "../sampling_math.h"
#include "launch.cuh"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kTopShift = 44;  // five digits of 11 bits hold a candidate's 54
static_assert(kTopShift + kDigitBits >= 32 + kIdBits && kTopShift % kDigitBits == 0);
static_assert(kBins == 2 * kThreads, "a thread scans two bins");

using u64 = unsigned long long;  // what atomicAdd and the shuffles take

/// A row of logits as candidates, after penalty and temperature.
struct Row {
  const float* logits;
  const uint32_t* seen;  // or null: no penalty
  SamplingParams params;
  int vocab;

  __device__ float chosen(int i, float logit) const {
    const bool is_seen = seen && (seen[i / 32] >> (i % 32) & 1);
    return chosen_by(logit, is_seen, params);
  }
  /// f(id, logit) of all, some by each thread in order: 16 bytes a load, several loads before the first is used.
  template <typename F>
  __device__ void each(F&& f) const {
    int done = 0;
    if (reinterpret_cast<uintptr_t>(logits) % sizeof(float4) == 0) {
      done = vocab / 4 * 4;
#pragma unroll 4
      for (int i = threadIdx.x * 4; i < done; i += kThreads * 4) {
        const float4 v = *reinterpret_cast<const float4*>(logits + i);
        f(i, chosen(i, v.x));
        f(i + 1, chosen(i + 1, v.y));
        f(i + 2, chosen(i + 2, v.z));
        f(i + 3, chosen(i + 3, v.w));
      }
    }
    for (int i = done + threadIdx.x; i < vocab; i += kThreads) f(i, chosen(i, logits[i]));
  }
};

struct Shared {
  u64 bins[kBins];
  u64 scratch[32];
  u64 digit, target;
};

__device__ u64 largest(const Row& row, Shared& shared) {
  float best = -INFINITY;
  int id = static_cast<int>(threadIdx.x) * 4;  // where no logit is above that, thread 0's is the least id
  row.each([&](int i, float logit) {
    if (logit > best) best = logit, id = i;
  });
  const u64 own = id < row.vocab ? candidate(best, id) : 0;
  return block_reduce(own, shared.scratch, Max{});
}

/// The weight of all candidates down to `least`.
__device__ u64 weight_down_to(const Row& row, u64 least, float max, Shared& shared) {
  u64 sum = 0;
  row.each([&](int i, float logit) {
    const u64 c = candidate(logit, i);
    if (c >= least) sum += weight(candidate_logit(c), max);
  });
  return block_reduce(sum, shared.scratch, Sum{});
}

/// Sum over the threads before this one.
__device__ u64 block_prefix(u64 value, Shared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u64 inclusive = value;
  for (int offset = 1; offset < 32; offset *= 2) {
    const u64 other = __shfl_up_sync(~0u, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == 31) shared.scratch[warp] = inclusive;
  __syncthreads();
  u64 before = 0;
  for (int w = 0; w < warp; ++w) before += shared.scratch[w];
  return before + inclusive - value;
}

/// In descending order, the first candidate at which the cumulated measure exceeds `target`, which is less than the
/// measure of all. A candidate's measure is its weight, or 1 where `count`.
__device__ u64 select(const Row& row, u64 target, bool count, float max, Shared& shared) {
  u64 prefix = 0;
  for (int shift = kTopShift; shift >= 0; shift -= kDigitBits) {
    __syncthreads();
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) shared.bins[bin] = 0;
    __syncthreads();
    row.each([&](int i, float logit) {
      const u64 c = candidate(logit, i);
      if (c >> (shift + kDigitBits) != prefix) return;
      const u64 measure = count ? 1 : weight(candidate_logit(c), max);
      if (measure) atomicAdd(&shared.bins[c >> shift & (kBins - 1)], measure);
    });
    __syncthreads();
    const int upper = kBins - 1 - 2 * static_cast<int>(threadIdx.x), lower = upper - 1;
    const u64 above_upper = block_prefix(shared.bins[upper] + shared.bins[lower], shared);
    const u64 above_lower = above_upper + shared.bins[upper];
    const u64 through_lower = above_lower + shared.bins[lower];
    if (above_upper <= target && target < through_lower) {  // of one thread only
      const bool in_upper = target < above_lower;
      shared.digit = in_upper ? upper : lower;
      shared.target = target - (in_upper ? above_upper : above_lower);
    }
    __syncthreads();
    prefix = prefix << kDigitBits | shared.digit;
    target = shared.target;
  }
  return prefix;
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(int32_t* out, const float* logits, const int32_t* slot, const int32_t* position,
                  SlotTable slots, int vocab) {
  __shared__ Shared shared;
  let_next_start();
  wait_for_previous();
  const int64_t r = blockIdx.x;
  const int64_t s = slot[r];
  const SamplingParams params = slots.sampling[s];
  const bool has_penalty = slots.seen && params.repetition_penalty != 1;
  const Row row{logits + r * vocab, has_penalty ? slots.seen + s * slots.seen_words : nullptr, params, vocab};
  u64 chosen = largest(row, shared);
  const float max = candidate_logit(chosen);
  if (row.params.temperature > 0 && max != -INFINITY) {
    u64 last = 0;  // the least candidate that may be drawn
    if (row.params.top_k > 0 && row.params.top_k < vocab)
      last = select(row, row.params.top_k - 1, true, max, shared);
    u64 total = weight_down_to(row, last, max, shared);
    if (row.params.top_p < 1) {
      last = select(row, share(row.params.top_p, total) - 1, false, max, shared);
      total = weight_down_to(row, last, max, shared);
    }
    const u64 bits = draw64(row.params.seed, row.params.id_hash, static_cast<uint32_t>(position[r]) + 1);
    chosen = select(row, scale_draw(bits, total), false, max, shared);
  }
  if (threadIdx.x == 0) out[r] = candidate_id(chosen);
}

__global__ void __launch_bounds__(kThreads) top_logits_kernel(TopLogit* out, const float* logits, int vocab) {
  __shared__ u64 scratch[32];
  const float* row = logits + int64_t{blockIdx.x} * vocab;
  u64 last = ~u64{0};
  for (int k = 0; k < kTopLogits; ++k) {
    u64 best = 0;
    for (int i = threadIdx.x; i < vocab; i += kThreads) {
      const u64 c = candidate(row[i], i);
      if (c < last) best = Max{}(best, c);
    }
    last = block_reduce(best, scratch, Max{});
    if (threadIdx.x == 0) {
      out[int64_t{blockIdx.x} * kTopLogits + k] =
          k < vocab ? TopLogit{candidate_id(last), candidate_logit(last)} : TopLogit{-1, -INFINITY};
    }
  }
}

__global__ void set_blocks_kernel(int32_t* block_table, const BlockEntry* entries, int n, int max_blocks) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) block_table[int64_t{entries[i].slot} * max_blocks + entries[i].index] = entries[i].block;
}

__global__ void open_slots_kernel(SlotTable slots, const SlotEntry* entries) {
  const SlotEntry& entry = entries[blockIdx.x];
  const int64_t slot = entry.slot;
  if (threadIdx.x == 0) {
    if (slots.sampling) slots.sampling[slot] = entry.sampling;
    if (slots.prompt_tokens) slots.prompt_tokens[slot] = entry.prompt_tokens;
  }
  if (!slots.seen) return;
  for (int i = threadIdx.x; i < slots.seen_words; i += blockDim.x)
    slots.seen[slot * slots.seen_words + i] = 0;
}

__global__ void mark_seen_kernel(SlotTable slots, const int32_t* slot, const int32_t* token, int n) {
  let_next_start();
  wait_for_previous();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && token[i] >= 0)
    atomicOr(&slots.seen[int64_t{slot[i]} * slots.seen_words + token[i] / 32], 1u << token[i] % 32);
}

__global__ void set_last_token_kernel(SlotTable slots, const int32_t* slot, const int32_t* sampled, int n) {
  let_next_start();
  wait_for_previous();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && (i + 1 == n || slot[i + 1] != slot[i])) slots.last_token[slot[i]] = sampled[i];
}

constexpr int kSmall = 128;
int blocks_for(int n) { return (n + kSmall - 1) / kSmall; }

}  // namespace

void set_blocks(int32_t* block_table, const BlockEntry* entries, int n, int max_blocks, Stream& stream) {
  set_blocks_kernel<<<blocks_for(n), kSmall, 0, native(stream)>>>(block_table, entries, n, max_blocks);
  check_launch("set_blocks");
}

void open_slots(const SlotTable& slots, const SlotEntry* entries, int n, Stream& stream) {
  open_slots_kernel<<<n, kSmall, 0, native(stream)>>>(slots, entries);
  check_launch("open_slots");
}

void mark_seen(const SlotTable& slots, const int32_t* slot, const int32_t* token, int n, Stream& stream) {
  launch_dependent(mark_seen_kernel, blocks_for(n), kSmall, 0, stream, slots, slot, token, n);
}

void set_last_token(const SlotTable& slots, const int32_t* slot, const int32_t* sampled, int n,
                    Stream& stream) {
  launch_dependent(set_last_token_kernel, blocks_for(n), kSmall, 0, stream, slots, slot, sampled, n);
}

void sample(int32_t* out, const float* logits, const int32_t* slot, const int32_t* position,
            const SlotTable& slots, int n, int vocab, Stream& stream) {
  launch_dependent(sample_kernel, n, kThreads, 0, stream, out, logits, slot, position, slots, vocab);
  if (slots.seen) cuda::mark_seen(slots, slot, out, n, stream);
}

void top_logits(TopLogit* out, const float* logits, int n, int vocab, Stream& stream) {
  top_logits_kernel<<<n, kThreads, 0, native(stream)>>>(out, logits, vocab);
  check_launch("top_logits");
}

}  // namespace pipeinfer::kernels::cuda

// Embedding, norm and activation: 16 bytes a thread and instruction where sizes and addresses allow. Norm and
// activation stand between products and are short where rows are few: dependent launches (launch.cuh). cuBLAS's kernels
// never let the next one start early; a dependent kernel then starts as their blocks end, which saves the launch.
#include "../ops.h"
#include "launch.cuh"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer::kernels::cuda {
namespace {

constexpr int kThreads = 256, kMaxThreads = 1024;

int blocks_for(int64_t items) { return static_cast<int>((items + kThreads - 1) / kThreads); }
int whole_warps(int threads) { return (threads + 31) / 32 * 32; }

/// Calls f with the element type and the vector width: 16 bytes where `wide`, else one element.
template <typename F>
void with_vector(DType dtype, bool wide, F&& f) {
  with_type(dtype, [&](auto type) {
    if (wide) {
      f(type, std::integral_constant<int, 16 / sizeof(type)>{});
    } else {
      f(type, std::integral_constant<int, 1>{});
    }
  });
}
bool divides(int64_t n, DType dtype) { return n % static_cast<int64_t>(16 / dtype_size(dtype)) == 0; }

template <typename Word>
__global__ void embed_kernel(Word* out, const Word* table, const int32_t* token, const int32_t* slot,
                             const int32_t* last_token, int words) {
  const int64_t t = blockIdx.x;
  const int64_t id = token[t] >= 0 ? token[t] : last_token[slot[t]];
  for (int i = threadIdx.x; i < words; i += kThreads) out[t * words + i] = table[id * words + i];
}

constexpr int kOfThread =
    16;  // elements of a row that a thread keeps in registers: all are read at once, and once

template <typename T, int N>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_kernel(T* out, const T* x, const T* weight, const int32_t* row, int hidden, float eps) {
  using W = typename Word<N * sizeof(T)>::type;
  __shared__ float scratch[32];
  const auto each = [&](auto&& f) {
#pragma unroll
    for (int p = 0; p < kOfThread / N; ++p) {
      const int i = (p * blockDim.x + threadIdx.x) * N;
      if (i < hidden) f(p, i);
    }
  };
  const auto elements = [](W& word) { return reinterpret_cast<T*>(&word); };
  W words[kOfThread / N], factors[kOfThread / N];
  float values[N], others[N];
  each([&](int p, int i) { factors[p] = *reinterpret_cast<const W*>(weight + i); });
  wait_for_previous();
  const int64_t from = (row ? row[blockIdx.x] : blockIdx.x) * int64_t{hidden};
  each([&](int p, int i) { words[p] = *reinterpret_cast<const W*>(x + from + i); });
  float squares = 0;
  each([&](int p, int) {
    load(values, elements(words[p]));
#pragma unroll
    for (int j = 0; j < N; ++j) squares += values[j] * values[j];
  });
  const float scale = 1 / sqrtf(block_reduce(squares, scratch, Sum{}) / hidden + eps);
  each([&](int p, int i) {
    load(values, elements(words[p]));
    load(others, elements(factors[p]));
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] *= scale * others[j];
    store(out + int64_t{blockIdx.x} * hidden + i, values);
  });
}

template <typename T, int N>
__global__ void silu_mul_kernel(T* out, const T* gate_up, int intermediate) {
  const int64_t t = blockIdx.x;
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
  wait_for_previous();
  if (i >= intermediate) return;
  const T* gate_row = gate_up + t * 2 * intermediate;
  float gate[N], up[N];
  load(gate, gate_row + i);
  load(up, gate_row + intermediate + i);
#pragma unroll
  for (int j = 0; j < N; ++j) gate[j] = __fdividef(gate[j], 1 + __expf(-gate[j])) * up[j];
  store(out + t * intermediate + i, gate);
}

/// What it reads, the host wrote before the launch: only the writes wait.
__global__ void upload_tables_kernel(uint4* to, const uint4* from, int64_t words) {
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  uint4 word{};
  if (i < words) word = from[i];
  wait_for_previous();
  if (i < words) to[i] = word;
}

}  // namespace

void upload_tables(void* to, const void* from, size_t bytes, Stream& stream) {
  const auto words = static_cast<int64_t>(bytes / sizeof(uint4));
  launch_dependent(upload_tables_kernel, blocks_for(words), kThreads, 0, stream, static_cast<uint4*>(to),
                   static_cast<const uint4*>(from), words);
}

void embed(void* out, const void* table, const int32_t* token, const int32_t* slot, const int32_t* last_token,
           int n_tokens, int hidden, DType dtype, Stream& stream) {
  const size_t bytes = hidden * dtype_size(dtype);
  const auto launch = [&](auto word) {
    using W = decltype(word);
    embed_kernel<<<n_tokens, kThreads, 0, native(stream)>>>(static_cast<W*>(out),
                                                            static_cast<const W*>(table), token, slot,
                                                            last_token, static_cast<int>(bytes / sizeof(W)));
  };
  if (bytes % 16 == 0 && aligned(16, out, table)) {
    launch(uint4{});
  } else {
    launch(uint16_t{});
  }
  check_launch("embed");
}

void rms_norm(void* out, const void* x, const void* weight, const int32_t* row, int n_rows, int hidden,
              float eps, DType dtype, Stream& stream) {
  const bool wide = divides(hidden, dtype) && aligned(16, out, x, weight);
  with_vector(dtype, wide, [&](auto type, auto width) {
    using T = decltype(type);
    const int threads = whole_warps((hidden + kOfThread - 1) / kOfThread);
    if (threads > kMaxThreads)
      usage_error(cat("hidden_size is ", hidden, ": on GPUs at most ", kMaxThreads * kOfThread));
    launch_dependent(rms_norm_kernel<T, width()>, n_rows, threads, 0, stream, static_cast<T*>(out),
                     static_cast<const T*>(x), static_cast<const T*>(weight), row, hidden, eps);
  });
}

void silu_mul(void* out, const void* gate_up, int n_tokens, int intermediate, DType dtype, Stream& stream) {
  const bool wide = divides(intermediate, dtype) && aligned(16, out, gate_up);
  with_vector(dtype, wide, [&](auto type, auto width) {
    using T = decltype(type);
    const int vectors = intermediate / width(), blocks = blocks_for(vectors);
    launch_dependent(silu_mul_kernel<T, width()>, dim3(n_tokens, blocks),
                     whole_warps((vectors + blocks - 1) / blocks), 0, stream, static_cast<T*>(out),
                     static_cast<const T*>(gate_up), intermediate);
  });
}

}  // namespace pipeinfer::kernels::cuda

// In place of src/kernels/cuda/mma.cuh: what its instructions do (PTX ISA 8.0, "Matrix fragments"), lane by lane.
#pragma once

#include "common.cuh"

namespace pipeinfer::kernels::cuda {

template <typename T>
inline constexpr bool kHasMma = sizeof(T) == 2;

/// c += a * b, a [16, K], b [K, 8], c [16, 8]. The fragments are those of the true mma.cuh: with g = lane / 4 and
/// t = lane % 4, register i of a holds row g + 8 (i % 2), columns 8 (i / 2) + 2t and the next one; register i of b rows
/// 8i + 2t and the next one of column g; element i of c row g + 8 (i / 2), column 2t + i % 2.
template <typename T, int K>
void multiply_fragments(float (&c)[4], const uint32_t (&a)[K / 4], const uint32_t (&b)[K / 8]) {
  emulator::Shown own{};
  for (int i = 0; i < K / 4 + K / 8; ++i) {
    const uint32_t word = i < K / 4 ? a[i] : b[i - K / 4];
    T pair[2];
    memcpy(pair, &word, sizeof word);
    own[2 * i] = to_float(pair[0]);
    own[2 * i + 1] = to_float(pair[1]);
  }
  const auto& shown = emulator::show(own, "mma");
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int k = 0; k < K; ++k) {
    const int lane = k % 8 / 2, part = k % 2;
    for (int i = 0; i < 4; ++i) {
      const float of_a = shown[g * 4 + lane][(k / 8 * 2 + i / 2) * 2 + part];
      const float of_b = shown[(2 * t + i % 2) * 4 + lane][(K / 4 + k / 8) * 2 + part];
      c[i] += of_a * of_b;
    }
  }
}

template <typename T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_fragments<T, 16>(c, a, b);
}

template <typename T>
void mma_16x8x8(float (&c)[4], const uint32_t (&a)[2], uint32_t b) {
  multiply_fragments<T, 8>(c, a, {b});
}

/// A lane gets element (row, 2t) and the next one of each matrix's row g, or of its column g where `transposed`.
template <bool transposed>
void load_fragments(uint32_t (&to)[4], const void* row) {
  emulator::check_shared(row, 16, 16);
  emulator::Shown own{};
  memcpy(own.data(), row, 16);
  const auto& shown = emulator::show(own, "ldmatrix");
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int from = transposed ? 2 * t + i : g, column = transposed ? g : 2 * t + i;
      memcpy(&pair[i], reinterpret_cast<const char*>(shown[m * 8 + from].data()) + column * 2, 2);
    }
    memcpy(&to[m], pair, sizeof pair);
  }
}
inline void load_matrices(uint32_t (&to)[4], const void* row) { load_fragments<false>(to, row); }
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) { load_fragments<true>(to, row); }

inline uint32_t transpose(uint32_t pair) {
  emulator::Shown own{};
  memcpy(own.data(), &pair, sizeof pair);
  const auto& shown = emulator::show(own, "movmatrix");
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  uint16_t both[2];
  for (int i = 0; i < 2; ++i)
    memcpy(&both[i], reinterpret_cast<const char*>(shown[(2 * t + i) * 4 + g / 2].data()) + g % 2 * 2, 2);
  memcpy(&pair, both, sizeof pair);
  return pair;
}

inline uint4 load_once(const void* from, bool there) {
  return there ? *static_cast<const uint4*>(from) : uint4{};
}

inline float exp2_approximate(float x) { return exp2f(x); }

template <int bytes>
void copy_to_shared(void* to, const void* from, bool read = true) {
  emulator::start_copy(to, from, read ? bytes : 0, bytes);
}
inline void copy_part_to_shared(void* to, const void* from, int bytes) {
  emulator::start_copy(to, from, bytes, 16);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int n>
void wait_copies() {
  emulator::wait_copies(n);
}

using Barrier = emulator::Barrier;
inline void init_barrier(Barrier* barrier, int arrivals) { barrier->init(arrivals); }
inline void arrive(Barrier* barrier) { barrier->arrive(0); }
inline void wait_phase(Barrier* barrier, int parity) { barrier->wait(parity); }
inline int copy_arrivals() { return 1; }
inline void copy_pieces(char* to, const void* from, int bytes, int total, Barrier* there) {
  if (threadIdx.x % 32 == 0) there->arrive(total);
  __syncwarp();
  if (bytes > 0) there->copy(to, from, bytes);
}
inline void order_before_copies() {}

}  // namespace pipeinfer::kernels::cuda

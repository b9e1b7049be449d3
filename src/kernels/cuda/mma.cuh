// The PTX instructions that kernels use (PTX ISA 8.0), one function each: tensor cores, matrix loads, asynchronous copies
// and the barriers that count them, of sm_80 and newer. Code for older targets compiles without them and must not be
// launched.
#pragma once

#include <cstdint>

#include "common.cuh"

namespace pipeinfer::kernels::cuda {

/// Whether T's products run on tensor cores.
template <typename T>
inline constexpr bool kHasMma = sizeof(T) == 2;

/// c += a * b for one warp: a [16, 16], b [16, 8], c [16, 8], of each thread (g = lane / 4, t = lane % 4)
///   a: rows g, g + 8, g, g + 8 at columns 2t and 2t + 1 (first two), 2t + 8 and 2t + 9 (last two)
///   b: rows 2t and 2t + 1, 2t + 8 and 2t + 9 of column g;   c: row g at columns 2t and 2t + 1, then row g + 8
template <typename T>
__device__ inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

/// c += a * b with a [16, 8] (columns 2t and 2t + 1 of rows g, g + 8) and b [8, 8] (rows 2t and 2t + 1 of column g).
template <typename T>
__device__ inline void mma_16x8x8(float (&c)[4], const uint32_t (&a)[2], uint32_t b) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  }
#endif
}

/// 2^x to about 22 bits, by one instruction: unlike exp2f, 0 where that is below the smallest normal float.
__device__ inline float exp2_approximate(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes that are read once: they pass by the L1 cache. Zeros unless they are `there`, without a branch, for which a
/// warp would wait.
__device__ inline uint4 load_once(const void* from, bool there) {
  uint4 v{};
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "{\n.reg .pred there;\nsetp.ne.b32 there, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@there ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<int>(there)));
#endif
  return v;
}

/// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8, 16-byte aligned.
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

/// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

/// An 8x8 matrix of 16-bit elements that a warp holds (of each thread row g = lane / 4 at columns 2t and 2t + 1, t = lane %
/// 4), transposed.
__device__ inline uint32_t transpose(uint32_t pair) {
  uint32_t other = 0;
#if __CUDA_ARCH__ >= 750
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(pair));
#endif
  return other;
}

/// Starts a copy of `bytes` (4, 8 or 16, aligned) from global to shared memory; zeros instead, and nothing is read,
/// unless `read`.
template <int bytes>
__device__ inline void copy_to_shared(void* to, const void* from, bool read = true) {
#if __CUDA_ARCH__ >= 800
  const int size = read ? bytes : 0;
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(size)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from),
                 "n"(bytes), "r"(size)
                 : "memory");
  }
#else
  using W = typename Word<bytes>::type;
  *static_cast<W*>(to) = read ? *static_cast<const W*>(from) : W{};
#endif
}

/// The same for 16 bytes of which only the first `read` (0 to 16) are read; the rest becomes zeros.
__device__ inline void copy_part_to_shared(void* to, const void* from, int read) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(read)
               : "memory");
#endif
}

/// Closes a group of this thread's copies (an empty one counts).
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most the `n` newest groups of this thread are still under way; its own copies are then visible to it.
template <int n>
__device__ inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}

/// A barrier in shared memory (mbarrier): a phase ends when `arrivals` threads arrived, and the copies they announced
/// are there. Initialised by one thread; the others may use it after a __syncthreads().
using Barrier = unsigned long long;
__device__ inline void init_barrier(Barrier* barrier, int arrivals) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // for bulk copies
#endif
}

__device__ inline void arrive(Barrier* barrier) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(shared_address(barrier))
      : "memory");
#endif
}

/// Waits for the end of the phase of this parity: 0 for a barrier's first, then 1, and so on by turns.
__device__ inline void wait_phase(Barrier* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra "
      "again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n@!done bra "
      "again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

/// What a barrier that counts copies is initialised with for each warp that starts them: bulk copies count bytes, so that
/// one lane arrives for all; others count the lanes.
__device__ inline int copy_arrivals() {
#if __CUDA_ARCH__ >= 900
  return 1;
#else
  return 32;
#endif
}

/// A warp starts copies to shared memory, one a lane, of `bytes` (a multiple of 16; 0: none) each and `total` together; a
/// phase of `there` ends when all are there.
__device__ inline void copy_pieces(char* to, const void* from, int bytes, int total, Barrier* there) {
  const int lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
  if (lane == 0)
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n}" ::"r"(
                     shared_address(there)),
                 "r"(total)
                 : "memory");
  __syncwarp();
  if (bytes > 0)
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(there))
        : "memory");
#elif __CUDA_ARCH__ >= 800
  const auto of = [](const void* pointer, int source) {
    return reinterpret_cast<char*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(pointer), source));
  };
  for (unsigned left = __ballot_sync(~0u, bytes > 0); left != 0; left &= left - 1) {
    const int source = __ffs(static_cast<int>(left)) - 1, size = __shfl_sync(~0u, bytes, source);
    char *const target = of(to, source), *const data = of(from, source);
    for (int i = lane * 16; i < size; i += 32 * 16) copy_to_shared<16>(target + i, data + i);
  }
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(there)) : "memory");
#endif
}

/// A thread's reads and writes of shared memory come before the copies that are started after the next __syncthreads().
__device__ inline void order_before_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace pipeinfer::kernels::cuda

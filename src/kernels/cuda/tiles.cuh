// The PTX instructions of sm_90a that tiled products use (PTX ISA 8.0), one function each: tensor copies, products of a
// warpgroup, and shared memory of a cluster. Code for other targets compiles without them and must not be launched.
#pragma once

#include <cuda.h>

#include "mma.cuh"

namespace pipeinfer::kernels::cuda {

/// Describes a matrix [rows, columns] of 16-bit elements in global memory of which boxes [box_rows, kBoxColumns] are
/// copied. A parameter of the kernel: const __grid_constant__.
using TileMap = CUtensorMap;
inline constexpr int kBoxColumns = 64;  // 128 bytes

/// `data` is a multiple of 16 bytes, columns one of 8; box_rows is at most 256.
TileMap make_tile_map(const void* data, int64_t rows, int columns, int box_rows);

/// This thread arrives, and announces copies of so many bytes (mbarrier.arrive.expect_tx).
__device__ inline void arrive_expecting(Barrier* there, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n}" ::"r"(
                   shared_address(there)),
               "r"(bytes)
               : "memory");
#endif
}

/// One thread starts the copy of the box whose first element is (row, column): all of its bytes count, with zeros for
/// what lies outside of the matrix. In shared memory (1024-byte aligned) row r has its 128 bytes at r * 128, and of them
/// the 16 bytes i at i ^ r % 8 (the 128-byte swizzle).
__device__ inline void copy_box(void* to, const TileMap& map, int row, int column, Barrier* there) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(there))
      : "memory");
#endif
}

/// Has the part of the box that lies in the matrix on its way to the L2 cache.
__device__ inline void prefetch_box(const TileMap& map, int row, int column) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map), "r"(column),
               "r"(row)
               : "memory");
#endif
}

/// What copies read from global memory from now on, ordinary writes that this thread can see have written.
__device__ inline void order_before_global_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

__device__ inline void begin_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void end_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// Until at most the `n` newest batches, of the whole warpgroup, are under way.
template <int n>
__device__ inline void wait_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
#endif
}

/// Where a matrix of 128-byte rows lies, for a product: the 128-byte swizzle, 8 rows every 1024 bytes.
__device__ inline uint64_t matrix_descriptor(const char* first) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEvery1024 = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEvery1024 | uint64_t{1} << 16 | (shared_address(first) & 0x3ffff) >> 4;
}

/// A matrix [n, k] of 16-bit elements in shared memory, as products take it without a swizzle: in groups of 8 x 8 elements,
/// 128 bytes each, whose 8 rows are neighbours in k, or in n where a product says so. The next group of n is `n_bytes`
/// further on, that of k `k_bytes`.
class Groups {
 public:
  __device__ Groups(const char* first, int n_bytes, int k_bytes)
      : descriptor_(uint64_t(n_bytes / 16) << 32 | uint64_t(k_bytes / 16) << 16 |
                    (shared_address(first) & 0x3ffff) >> 4) {}
  /// The matrix that begins so much further on.
  __device__ Groups operator+(int bytes) const {
    Groups other = *this;
    other.descriptor_ += bytes / 16;
    return other;
  }
  __device__ uint64_t descriptor() const { return descriptor_; }

 private:
  uint64_t descriptor_;  // PTX ISA, "Matrix Descriptor Format"
};

// wgmma with the operands that follow the sums, as text and as what they are.
#define PI_WGMMA_8(type, operands, ...)                                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32." type "." type " {%0,%1,%2,%3}, " operands \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                       \
               : __VA_ARGS__)
#define PI_WGMMA_16(type, operands, ...)                                                                  \
  asm volatile(                                                                                           \
      "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type " {%0,%1,%2,%3,%4,%5,%6,%7}, " operands \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])    \
      : __VA_ARGS__)
#define PI_WGMMA_32(type, operands, ...)                                                                 \
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                               \
               " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, " operands                     \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),     \
                 "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), \
                 "+f"(c[14]), "+f"(c[15])                                                                \
               : __VA_ARGS__)
#define PI_WGMMA_64(type, operands, ...)                                                                    \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                  \
               " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%"  \
               "24,%25,%26,%27,%28,%29,%30,%31}, " operands                                                 \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),        \
                 "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),    \
                 "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), \
                 "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), \
                 "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])                                         \
               : __VA_ARGS__)
#define PI_WGMMA(n, operands, ...)               \
  if constexpr (std::is_same_v<T, __half>) {     \
    PI_WGMMA_##n("f16", operands, __VA_ARGS__);  \
  } else {                                       \
    PI_WGMMA_##n("bf16", operands, __VA_ARGS__); \
  }

// What follows runs asynchronously, for a warpgroup (4 warps): begin_products() before the first of a batch,
// end_products() after its last, and operands and c are left alone until wait_products(). c has 64 rows and N columns: of
// each thread (w = warp % 4, g = lane / 4, t = lane % 4), c[4j] and c[4j + 1] are row 16w + g at columns 8j + 2t and the
// next, c[4j + 2] and c[4j + 3] row 16w + g + 8.

/// c += a * b^T: a [64, 16], b [N, 16] in shared memory, by their descriptors.
template <typename T, int N>
__device__ inline void multiply_matrices(float (&c)[N / 2], uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (N == 8) {
    PI_WGMMA(8, "%4, %5, 1, 1, 1, 0, 0;", "l"(a), "l"(b))
  } else if constexpr (N == 16) {
    PI_WGMMA(16, "%8, %9, 1, 1, 1, 0, 0;", "l"(a), "l"(b))
  } else if constexpr (N == 32) {
    PI_WGMMA(32, "%16, %17, 1, 1, 1, 0, 0;", "l"(a), "l"(b))
  } else {
    static_assert(N == 64);
    PI_WGMMA(64, "%32, %33, 1, 1, 1, 0, 0;", "l"(a), "l"(b))
  }
#endif
}

/// 16 columns of boxes: `a` and `b` point to a column, a multiple of 16, of a box's row whose number is a multiple of 8.
template <typename T, int N>
__device__ inline void multiply_boxes(float (&c)[N / 2], const char* a, const char* b) {
  multiply_matrices<T, N>(c, matrix_descriptor(a), matrix_descriptor(b));
}

/// The groups' rows are neighbours in k.
template <typename T, int N>
__device__ inline void multiply_groups(float (&c)[N / 2], Groups a, Groups b) {
  multiply_matrices<T, N>(c, a.descriptor(), b.descriptor());
}

/// c += a * b^T: a [64, 16] in registers, of each warp its 16 rows as mma_16x8x16 has them; the rows of b's groups are
/// neighbours in n.
template <typename T, int N>
__device__ inline void multiply_groups(float (&c)[N / 2], const uint32_t (&a)[4], Groups b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PI_OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor())
  if constexpr (N == 8) {
    PI_WGMMA(8, "{%4,%5,%6,%7}, %8, 1, 1, 1, 1;", PI_OPERANDS)
  } else if constexpr (N == 16) {
    PI_WGMMA(16, "{%8,%9,%10,%11}, %12, 1, 1, 1, 1;", PI_OPERANDS)
  } else if constexpr (N == 32) {
    PI_WGMMA(32, "{%16,%17,%18,%19}, %20, 1, 1, 1, 1;", PI_OPERANDS)
  } else {
    static_assert(N == 64);
    PI_WGMMA(64, "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;", PI_OPERANDS)
  }
#undef PI_OPERANDS
#endif
}
#undef PI_WGMMA
#undef PI_WGMMA_8
#undef PI_WGMMA_16
#undef PI_WGMMA_32
#undef PI_WGMMA_64

/// Waits until `threads` threads (a multiple of 32, whole warps) are at barrier `id` (1 to 15; 0 is __syncthreads'). They
/// see each other's writes before it.
__device__ inline void sync_threads(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// A block's number in its cluster.
__device__ inline int cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
/// Every thread of the cluster arrives, and waits for the others: they see each other's writes before it, to shared memory
/// alone. For those to global memory too, all would wait that are under way, with the next kernel's first weights in front.
__device__ inline void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "fence.release.sync_restrict::shared::cta.cluster;\nbarrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#endif
}
/// What this thread has read of the others' shared memory, it has: every thread arrives, and block after block may end when
/// all have.
__device__ inline void leave_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}
/// Four floats that block `rank` of the cluster has in its shared memory where this one has `own`.
__device__ inline float4 load_from_cluster(const float* own, int rank) {
  float4 v{};
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(own)), "r"(rank));
#endif
  return v;
}

}  // namespace pipeinfer::kernels::cuda

// Programmatic dependent launch: a kernel may start while the one before it in the stream still runs, so that its
// blocks are resident, and what it may read early (weights, which no kernel writes) is on its way, when that one ends.
//
// Rules: a kernel of launch_dependent() calls wait_for_previous() before it first reads or writes anything that an
// earlier kernel of the stream writes or reads (a thread that only reads constants need not call it, but some thread of
// the grid must, or the kernel after this one could overtake the kernel before); let_next_start() may come at any time,
// and costs only the resources that the next kernel's waiting blocks take from this one's. Kernels launched by <<<>>>
// need neither: they start when everything before them is complete.
#pragma once

#include <utility>

#include "common.cuh"

namespace pipeinfer::kernels::cuda {

/// Returns when all earlier kernels of the stream are complete and their writes visible.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The next kernel's blocks may start as soon as every block of this one has called this or ended.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

inline int attribute(cudaDeviceAttr which, Device device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device.index), "cudaDeviceGetAttribute");
  return value;
}

/// What the compiler made of a kernel.
template <typename... P>
cudaFuncAttributes code_of(void (*kernel)(P...)) {
  cudaFuncAttributes code{};
  check_cuda(cudaFuncGetAttributes(&code, kernel), "cudaFuncGetAttributes");
  return code;
}
/// The architecture (10 x major + minor) that the kernel's code was written for: what __CUDA_ARCH__ was, over 10. Code of
/// an older one may run here, and lacks the newer instructions wherever it runs.
template <typename... P>
int code_version(void (*kernel)(P...)) {
  return code_of(kernel).ptxVersion;
}

/// Whether code for sm_90a runs there: on GPUs of compute capability 9.0, where it is built in (tiled_linear.cu says so). Not
/// where the environment has PIPEINFER_UNTILED, with which tests run what older GPUs run.
bool has_sm90a(Device device);

/// Lets a kernel have so much dynamic shared memory. A multiprocessor that holds kernels of a chain side by side cannot
/// change its share of shared memory between them: so these ask for the most.
template <typename... P>
void allow_shared(void (*kernel)(P...), int bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "cudaFuncSetAttribute");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "cudaFuncSetAttribute");
}

/// Shared memory of a launch: the dynamic bytes of a block, and the percentage of the multiprocessor's that is to be shared
/// memory and not L1 cache (-1: what the kernel's attributes say).
struct SharedMemory {
  size_t bytes;
  int share;
  SharedMemory(size_t bytes, int share = -1) : bytes(bytes), share(share) {}
};
/// The share, in percent, where many loads are under way: they wait in the L1 cache.
inline constexpr int kSmallShare = 25;

/// Blocks of a launch, of which every `cluster` neighbours share their shared memory (more than 1: sm_90 and newer).
struct Grid {
  dim3 blocks;
  int cluster;
  Grid(dim3 blocks, int cluster = 1) : blocks(blocks), cluster(cluster) {}
  Grid(int blocks) : Grid(dim3(blocks)) {}
};

/// Clusters of `size` blocks that are resident at once.
template <typename... P>
int most_clusters(void (*kernel)(P...), int threads, int shared_bytes, int size) {
  allow_shared(kernel, shared_bytes);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(size);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  check_cuda(cudaOccupancyMaxActiveClusters(&count, kernel, &config), "cudaOccupancyMaxActiveClusters");
  return count;
}

/// kernel<<<grid, block, shared, stream>>>(args...), but dependent on the kernel before it only through
/// wait_for_previous() where the running code has that (sm_90 and newer).
template <typename... P, typename... A>
void launch_dependent(void (*kernel)(P...), Grid grid, dim3 block, SharedMemory shared, Stream& stream,
                      A&&... args) {
  cudaLaunchAttribute attributes[3]{};
  unsigned n = 0;
  if (code_version(kernel) >= 90) {  // code for sm_80 does not wait, wherever it runs
    attributes[n].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[n++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shared.share >= 0) {
    attributes[n].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[n++].val.sharedMemCarveout = static_cast<unsigned>(shared.share);
  }
  if (grid.cluster > 1) {
    attributes[n].id = cudaLaunchAttributeClusterDimension;
    attributes[n++].val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = block;
  config.dynamicSmemBytes = shared.bytes;
  config.stream = native(stream);
  config.attrs = attributes;
  config.numAttrs = n;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
  const char* name = "a kernel";
  if (status != cudaSuccess) cudaFuncGetName(&name, kernel);
  check_cuda(status, name);
}

}  // namespace pipeinfer::kernels::cuda

#include <cuda_runtime.h>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/device/cuda_check.h"
#include "tiles.cuh"

namespace pipeinfer::kernels::cuda {

namespace {
// The driver's function, by way of the runtime: linking with the driver would need it where there is none.
using Encode = decltype(&cuTensorMapEncodeTiled);
Encode encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check_cuda(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
      "looking for cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) runtime_failure("CUDA: the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(function);
}
}  // namespace

TileMap make_tile_map(const void* data, int64_t rows, int columns, int box_rows) {
  static const Encode encode = encoder();
  TileMap map;
  // The first dimension is the one whose elements are neighbours. To copies, 16 bits are 16 bits.
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t row_bytes[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(data), sizes, row_bytes, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    runtime_failure(cat("CUDA: cuTensorMapEncodeTiled of [", rows, ", ", columns, "] failed: ", int{result}));
  return map;
}

}  // namespace pipeinfer::kernels::cuda

// The twin of cuda/ for builds without CUDA.
#include "ops.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer::kernels {

const Ops& cuda_ops() {
  usage_error("a CUDA kernel was asked for, but this pipeinfer was built without CUDA");
}

double cuda_read_limit_gbps(Device, size_t) { return 0; }
double cuda_gemm_rate_tflops(Device, DType) { return 0; }

}  // namespace pipeinfer::kernels

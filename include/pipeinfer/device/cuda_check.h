// Errors of the CUDA runtime as ours. Only for code that is compiled with CUDA.
#pragma once

#include <cuda_runtime_api.h>

namespace pipeinfer {

/// Throws Error(failed) "CUDA: <doing>: <name of the error> (<its text>)" unless `status` is success.
void check_cuda(cudaError_t status, const char* doing);

}  // namespace pipeinfer

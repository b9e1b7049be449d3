// Matrix products by cuBLAS, sums in fp32.
#include <cublas_v2.h>

#include <memory>
#include <vector>

#include "../ops.h"
#include "common.cuh"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer::kernels::cuda {
namespace {

void check_cublas(cublasStatus_t status, const char* doing) {
  if (status != CUBLAS_STATUS_SUCCESS)
    runtime_failure(cat("cuBLAS: ", doing, ": ", cublasGetStatusString(status)));
}

/// A handle bound to one stream, with a workspace of its own, which streams of one thread must not share. It is too small
/// for sums that are split: they save less than the kernel costs that adds them up (on an H200, at 32 to 8192 rows).
class Handle {
 public:
  explicit Handle(const Stream& stream)
      : device_(stream.device().index),
        stream_(native(stream)),
        workspace_(stream.device(), kWorkspaceBytes, "cuBLAS workspace") {
    check_cublas(cublasCreate(&handle_), "creating a handle");
    check_cublas(cublasSetStream(handle_, stream_), "choosing a stream");
    check_cublas(cublasSetWorkspace(handle_, workspace_.data(), kWorkspaceBytes), "setting the workspace");
    // Default math uses no TF32; split sums of fp16 and bf16 products stay in fp32 too.
    const auto mode =
        static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    check_cublas(cublasSetMathMode(handle_, mode), "setting the math mode");
  }
  ~Handle() { cublasDestroy(handle_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  bool is_for(const Stream& stream) const {
    return device_ == stream.device().index && stream_ == native(stream);
  }
  cublasHandle_t get() const { return handle_; }

 private:
  static constexpr size_t kWorkspaceBytes = 256;
  const int device_;
  const cudaStream_t stream_;
  DeviceBuffer workspace_;
  cublasHandle_t handle_ = nullptr;
};

/// This thread's handle of a stream; made at the first product there, which must not be under capture.
cublasHandle_t handle_of(const Stream& stream) {
  static thread_local std::vector<std::unique_ptr<Handle>> handles;
  for (const auto& handle : handles) {
    if (handle->is_for(stream)) return handle->get();
  }
  return handles.emplace_back(std::make_unique<Handle>(stream))->get();
}

cudaDataType_t data_type(DType dtype) {
  return dtype == DType::fp32 ? CUDA_R_32F : dtype == DType::fp16 ? CUDA_R_16F : CUDA_R_16BF;
}

template <typename T, typename Out>
__global__ void add_bias_kernel(Out* out, const T* bias, int n_out, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) out[i] = from_float<Out>(to_float(out[i]) + to_float(bias[i % n_out]));
}

}  // namespace

void linear_cuda(void* out, const void* x, const void* weight, const void* bias, int n_rows, int n_out,
                 int n_in, DType dtype, Epilogue epilogue, Stream& stream) {
  const DType out_dtype = epilogue == Epilogue::store_fp32 ? DType::fp32 : dtype;
  // cuBLAS is column-major: out^T [n_out, n_rows] = weight x^T, where the memory of weight reads as weight^T.
  const float one = 1, kept = epilogue == Epilogue::add ? 1 : 0;
  check_cublas(cublasGemmEx(handle_of(stream), CUBLAS_OP_T, CUBLAS_OP_N, n_out, n_rows, n_in, &one, weight,
                            data_type(dtype), n_in, x, data_type(dtype), n_in, &kept, out,
                            data_type(out_dtype), n_out, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
               "a matrix product");
  if (!bias) return;
  constexpr int kThreads = 256;
  const int64_t n = int64_t{n_rows} * n_out;
  const int blocks = static_cast<int>((n + kThreads - 1) / kThreads);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if (out_dtype == DType::fp32) {
      add_bias_kernel<<<blocks, kThreads, 0, native(stream)>>>(static_cast<float*>(out),
                                                               static_cast<const T*>(bias), n_out, n);
    } else {
      add_bias_kernel<<<blocks, kThreads, 0, native(stream)>>>(static_cast<T*>(out),
                                                               static_cast<const T*>(bias), n_out, n);
    }
  });
  check_launch("add_bias");
}

}  // namespace pipeinfer::kernels::cuda

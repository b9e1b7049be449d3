#include <cublas_v2.h>

#include <cstring>
#include <vector>

namespace {

using namespace pipeinfer::kernels::cpu;

/// Calls f with a value of the element type.
template <typename F>
void with_type(cudaDataType_t type, F&& f) {
  if (type == CUDA_R_32F) return f(float{});
  if (type == CUDA_R_16F) return f(Half{});
  f(BFloat16{});
}

/// Columns [n, k] of a column-major matrix as floats.
std::vector<float> floats(const void* data, cudaDataType_t type, int n, int k, int ld) {
  std::vector<float> values;
  values.reserve(size_t(n) * k);
  with_type(type, [&](auto element) {
    const auto* from = static_cast<const decltype(element)*>(data);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < k; ++j) values.push_back(to_float(from[size_t(i) * ld + j]));
    }
  });
  return values;
}

}  // namespace

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t a_op, cublasOperation_t b_op, int m,
                            int n, int k, const float* alpha, const void* a, cudaDataType_t a_type, int lda,
                            const void* b, cudaDataType_t b_type, int ldb, const float* beta, void* c,
                            cudaDataType_t c_type, int ldc, cublasComputeType_t, cublasGemmAlgo_t) {
  if (a_op != CUBLAS_OP_T || b_op != CUBLAS_OP_N || *alpha != 1 || lda < k || ldb < k || ldc < m)
    emulator::fail("cublasGemmEx is not asked for a^T * b");
  emulator::enqueue(handle->stream, [=, kept = *beta] {
    const std::vector<float> rows = floats(a, a_type, m, k, lda), columns = floats(b, b_type, n, k, ldb);
    with_type(c_type, [&](auto element) {
      auto* to = static_cast<decltype(element)*>(c);
      for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
          const float *x = &rows[size_t(i) * k], *y = &columns[size_t(j) * k];
          auto& out = to[size_t(j) * ldc + i];
          float sum = kept == 0 ? 0 : kept * to_float(out);  // 0: out may be uninitialised
          for (int l = 0; l < k; ++l) sum += x[l] * y[l];
          out = from_float<decltype(element)>(sum);
        }
      }
    });
  });
  return CUBLAS_STATUS_SUCCESS;
}

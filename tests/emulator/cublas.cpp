#include <cublasLt.h>

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

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDescOpaque_t* product, const float* alpha,
                              const void* a, cublasLtMatrixLayoutOpaque_t* a_layout, const void* b,
                              cublasLtMatrixLayoutOpaque_t* b_layout, const float* beta, const void* c,
                              cublasLtMatrixLayoutOpaque_t* c_layout, void* d,
                              cublasLtMatrixLayoutOpaque_t* d_layout, const cublasLtMatmulAlgo_t*, void*,
                              size_t, cudaStream_t stream) {
  const cublasLtMatrixLayoutOpaque_t a_is = *a_layout, b_is = *b_layout, d_is = *d_layout;
  const int m = int(d_is.rows), n = int(d_is.columns), k = int(a_is.rows);
  if (!product->transposed_a || *alpha != 1 || c != d || c_layout != d_layout || int(a_is.columns) != m ||
      int(b_is.rows) != k || int(b_is.columns) != n || a_is.ld < k || b_is.ld < k || d_is.ld < m)
    emulator::fail("cublasLtMatmul is not asked for d = a^T * b + beta * d");
  emulator::enqueue(stream, [=, kept = *beta] {
    const std::vector<float> rows = floats(a, a_is.type, m, k, int(a_is.ld)),
                             columns = floats(b, b_is.type, n, k, int(b_is.ld));
    with_type(d_is.type, [&](auto element) {
      auto* to = static_cast<decltype(element)*>(d);
      for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
          const float *x = &rows[size_t(i) * k], *y = &columns[size_t(j) * k];
          float sum = 0;
          for (int l = 0; l < k; ++l) sum += x[l] * y[l];
          auto& out = to[size_t(j) * d_is.ld + i];
          const auto rounded = from_float<decltype(element)>(sum);  // before it is added, as on an H200
          out = kept == 0 ? rounded : from_float<decltype(element)>(to_float(rounded) + kept * to_float(out));
        }
      }
    });
  });
  return CUBLAS_STATUS_SUCCESS;
}

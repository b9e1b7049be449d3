// Matrix products by cuBLAS, sums in fp32.
#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <compare>
#include <iterator>
#include <map>
#include <string>
#include <string_view>

#include "../ops.h"
#include "common.cuh"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer::kernels::cuda {
namespace {

void check_cublas(cublasStatus_t status, std::string_view doing) {
  if (status != CUBLAS_STATUS_SUCCESS)
    runtime_failure(cat("cuBLAS: ", doing, ": ", cublasLtGetStatusString(status)));
}

cudaDataType_t data_type(DType dtype) {
  return dtype == DType::fp32 ? CUDA_R_32F : dtype == DType::fp16 ? CUDA_R_16F : CUDA_R_16BF;
}

/// What a kernel is chosen by. cuBLAS is column-major: out^T [n_out, n_rows] = weight x^T, where the memory of weight reads
/// as weight^T.
struct Product {
  int n_rows, n_out, n_in;
  DType dtype, out_dtype;
  uint32_t alignment;  // bytes, of all addresses
  auto operator<=>(const Product&) const = default;
};

/// A product as cuBLAS describes it, and the kernel for it.
struct Plan {
  Plan(cublasLtHandle_t handle, const Product& p) {
    check_cublas(cublasLtMatmulDescInit(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check_cublas(
        cublasLtMatmulDescSetAttribute(&product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
        "describing a product");
    const auto matrix = [](cublasLtMatrixLayoutOpaque_t& layout, DType dtype, int rows, int columns) {
      check_cublas(cublasLtMatrixLayoutInit(&layout, data_type(dtype), rows, columns, rows),
                   "describing a matrix");
    };
    matrix(weight, p.dtype, p.n_in, p.n_out);
    matrix(x, p.dtype, p.n_in, p.n_rows);
    matrix(out, p.out_dtype, p.n_out, p.n_rows);
    choose(handle, p);
  }

  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t weight, x, out;
  cublasLtMatmulAlgo_t kernel;

 private:
  void choose(cublasLtHandle_t handle, const Product& p) {
    const std::string doing = cat("choosing a kernel for ", p.n_rows, " x ", p.n_in, " x ", p.n_out);
    cublasLtMatmulPreferenceOpaque_t preference;
    check_cublas(cublasLtMatmulPreferenceInit(&preference), doing);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check_cublas(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value), doing);
    };
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      prefer(attribute, p.alignment);
    // Splitting sums saves less than the kernel costs that adds them up (on an H200, at 32 to 8192 rows).
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{0});
    cublasLtMatmulHeuristicResult_t found[8] = {};
    found[0].state = CUBLAS_STATUS_NOT_SUPPORTED;  // where there is none
    int n_found = 0;
    check_cublas(cublasLtMatmulAlgoGetHeuristic(handle, &product, &weight, &x, &out, &out, &preference,
                                                std::ssize(found), found, &n_found),
                 doing);
    // cuBLAS's first suggestion, but where a product's blocks come in many waves: there the one whose last wave leaves the
    // fewest multiprocessors idle (2,048 rows of OpenLLaMA-3B's gate and up: 12.0 waves instead of 6.55, and 6% faster).
    // In few waves the size of its blocks counts more.
    constexpr float kManyWaves = 3;
    const cublasLtMatmulHeuristicResult_t* best = found;
    if (found[0].wavesCount > kManyWaves)
      best = std::max_element(found, found + n_found,
                              [](const auto& a, const auto& b) { return fill(a) < fill(b); });
    check_cublas(best->state, doing);
    kernel = best->algo;
  }

  /// The share of multiprocessors that have work while a product's blocks come in so many waves; a hair above a whole
  /// number of them is one.
  static float fill(const cublasLtMatmulHeuristicResult_t& result) {
    return result.wavesCount / std::ceil(result.wavesCount - 0.001f);
  }
};

/// cuBLAS on the current device, for one thread.
class Library {
 public:
  Library() { check_cublas(cublasLtCreate(&handle_), "starting"); }
  ~Library() { cublasLtDestroy(handle_); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  void multiply(const Product& p, void* out, const void* x, const void* weight, float kept,
                cudaStream_t stream) {
    Plan& plan = plans_.try_emplace(p, handle_, p).first->second;
    const float one = 1;
    check_cublas(cublasLtMatmul(handle_, &plan.product, &one, weight, &plan.weight, x, &plan.x, &kept, out,
                                &plan.out, out, &plan.out, &plan.kernel, nullptr, 0, stream),
                 "a matrix product");
  }

 private:
  cublasLtHandle_t handle_ = nullptr;
  std::map<Product, Plan> plans_;
};

template <typename T, typename Out>
__global__ void add_bias_kernel(Out* out, const T* bias, int n_out, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) out[i] = from_float<Out>(to_float(out[i]) + to_float(bias[i % n_out]));
}

}  // namespace

void linear_cuda(void* out, const void* x, const void* weight, const void* bias, int n_rows, int n_out,
                 int n_in, DType dtype, Epilogue epilogue, Stream& stream) {
  const DType out_dtype = epilogue == Epilogue::store_fp32 ? DType::fp32 : dtype;
  constexpr uintptr_t kMostAlignment = 256;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(out) | reinterpret_cast<uintptr_t>(x) |
                         reinterpret_cast<uintptr_t>(weight) | kMostAlignment;
  const Product product{n_rows, n_out, n_in, dtype, out_dtype, uint32_t{1} << std::countr_zero(bits)};
  static thread_local std::map<int, Library> of_device;
  const float kept = epilogue == Epilogue::add ? 1 : 0;
  of_device[stream.device().index].multiply(product, out, x, weight, kept, native(stream));
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

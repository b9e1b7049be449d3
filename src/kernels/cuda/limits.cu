// A plain read of memory, eight independent 16-byte loads in flight a thread and as many threads as fit, and a plain
// product of random matrices.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "../ops.h"
#include "common.cuh"
#include "pipeinfer/base/error.h"
#include "pipeinfer/device/cuda_check.h"

namespace pipeinfer::kernels {

namespace {

constexpr int kLoads = 8, kThreads = 256, kRuns = 10;

__global__ void read_all(const uint4* __restrict__ data, size_t n, uint32_t* sink) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + (kLoads - 1) * stride < n; i += kLoads * stride) {
    uint4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) v[k] = __ldcs(data + i + k * stride);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 0x9e3779b9u) *sink = sum;  // never, but the compiler cannot know
}

/// Numbers in [-1, 1): the power that reads and products draw, and so the clock, depends on the bits.
template <typename T>
__global__ void fill_random(T* data, size_t n) {
  const size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  uint32_t hash = static_cast<uint32_t>(i) * 2654435761u;
  hash = (hash ^ hash >> 15) * 2246822519u;
  hash ^= hash >> 13;
  data[i] = cuda::from_float<T>(static_cast<float>(hash) * 0x1p-31f - 1);
}

template <typename T>
void fill(T* data, size_t n, Stream& stream) {
  fill_random<<<static_cast<unsigned>((n + kThreads - 1) / kThreads), kThreads, 0, cuda::native(stream)>>>(
      data, n);
  cuda::check_launch("fill_random");
}

/// Seconds of each of some runs, which last `at_least_s` together.
std::vector<double> times_s(Device device, Stream& stream, double at_least_s,
                            const std::function<void()>& enqueue) {
  std::vector<double> times;
  for (double all_s = 0; times.size() < kRuns || all_s < at_least_s; all_s += times.back()) {
    Event begin(device), end(device);
    begin.record(stream);
    enqueue();
    end.record(stream);
    if (!wait_until(end, 10)) runtime_failure("a plain read or product on the GPU did not end within 10 s");
    times.push_back(end.time_s() - begin.time_s());
  }
  return times;
}

}  // namespace

double cuda_read_limit_gbps(Device device, size_t bytes) {
  const DeviceInfo info = device_info(device);
  if (static_cast<size_t>(info.free_bytes) < bytes + (size_t{64} << 20)) return 0;
  const DeviceBuffer data(device, bytes, "read limit"), sink(device, sizeof(uint32_t), "read limit");
  Stream stream(device);
  fill(data.as<float>(), bytes / sizeof(float), stream);
  const std::vector<double> times = times_s(device, stream, 0, [&] {
    read_all<<<info.multiprocessors * 8, kThreads, 0, cuda::native(stream)>>>(
        data.as<uint4>(), bytes / sizeof(uint4), sink.as<uint32_t>());
    cuda::check_launch("read_all");
  });
  return static_cast<double>(bytes) / *std::min_element(times.begin(), times.end()) / 1e9;
}

double cuda_gemm_rate_tflops(Device device, DType dtype) {
  constexpr int m = 2048, n = 17280, k = 3200, products = 10;
  const size_t size = dtype_size(dtype), elements = size_t{m} * k + size_t{n} * k, out = size_t{m} * n;
  if (static_cast<size_t>(device_info(device).free_bytes) < (elements + out) * size + (size_t{256} << 20))
    return 0;
  const DeviceBuffer data(device, elements * size, "GEMM rate"), product(device, out * size, "GEMM rate");
  Stream stream(device);
  cuda::with_type(dtype, [&](auto type) { fill(data.as<decltype(type)>(), elements, stream); });
  // The rate that holds: a GPU that is busy with products for longer than an instant lowers its clock to stay within
  // its power limit, in a prefill as here. So the median of the later runs.
  std::vector<double> times = times_s(device, stream, 0.5, [&] {
    for (int i = 0; i < products; ++i)
      linear_cuda(product.data(), data.data(), data.as<char>() + size_t{m} * k * size, nullptr, m, n, k,
                  dtype, Epilogue::store, stream);
  });
  const auto half = times.begin() + times.size() / 2, middle = half + (times.end() - half) / 2;
  std::nth_element(half, middle, times.end());
  return 2.0 * m * n * k * products / *middle / 1e12;
}

}  // namespace pipeinfer::kernels

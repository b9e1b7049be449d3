// A plain read of memory, eight independent 16-byte loads in flight a thread and as many threads as fit, and a plain
// product of random matrices.
#include <algorithm>
#include <cstdint>
#include <functional>

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

/// Seconds of the fastest of some runs.
double best_time_s(Device device, Stream& stream, const std::function<void()>& enqueue) {
  double best_s = 1e30;
  for (int i = 0; i < kRuns; ++i) {
    Event begin(device), end(device);
    begin.record(stream);
    enqueue();
    end.record(stream);
    if (!wait_until(end, 10)) runtime_failure("a plain read or product on the GPU did not end within 10 s");
    best_s = std::min(best_s, end.time_s() - begin.time_s());
  }
  return best_s;
}

}  // namespace

double cuda_read_limit_gbps(Device device, size_t bytes) {
  const DeviceInfo info = device_info(device);
  if (static_cast<size_t>(info.free_bytes) < bytes + (size_t{64} << 20)) return 0;
  const DeviceBuffer data(device, bytes, "read limit"), sink(device, sizeof(uint32_t), "read limit");
  Stream stream(device);
  fill(data.as<float>(), bytes / sizeof(float), stream);
  const double best_s = best_time_s(device, stream, [&] {
    read_all<<<info.multiprocessors * 8, kThreads, 0, cuda::native(stream)>>>(
        data.as<uint4>(), bytes / sizeof(uint4), sink.as<uint32_t>());
    cuda::check_launch("read_all");
  });
  return static_cast<double>(bytes) / best_s / 1e9;
}

double cuda_gemm_rate_tflops(Device device, DType dtype) {
  constexpr int m = 2048, n = 17280, k = 3200, times = 10;
  const size_t size = dtype_size(dtype), elements = size_t{m} * k + size_t{n} * k, out = size_t{m} * n;
  if (static_cast<size_t>(device_info(device).free_bytes) < (elements + out) * size + (size_t{256} << 20))
    return 0;
  const DeviceBuffer data(device, elements * size, "GEMM rate"), product(device, out * size, "GEMM rate");
  Stream stream(device);
  cuda::with_type(dtype, [&](auto type) { fill(data.as<decltype(type)>(), elements, stream); });
  const double best_s = best_time_s(device, stream, [&] {
    for (int i = 0; i < times; ++i)
      linear_cuda(product.data(), data.data(), data.as<char>() + size_t{m} * k * size, nullptr, m, n, k,
                  dtype, dtype, stream);
  });
  return 2.0 * m * n * k * times / best_s / 1e12;
}

}  // namespace pipeinfer::kernels

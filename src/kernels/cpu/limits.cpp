#include "pipeinfer/kernels/limits.h"

#include <algorithm>
#include <cstdint>
#include <new>
#include <thread>
#include <vector>

#include "../ops.h"
#include "pipeinfer/base/clock.h"

namespace pipeinfer {

namespace {

constexpr int kReads = 4;  // the first one also fills the page tables

double cpu_read_limit_gbps(size_t bytes, int threads) {
  std::vector<uint64_t> words;
  try {
    words.assign(bytes / sizeof(uint64_t), 1);
  } catch (const std::bad_alloc&) {
    return 0;
  }
  std::vector<uint64_t> sums(threads);
  double best_s = 1e30;
  for (int i = 0; i < kReads; ++i) {
    const double begin_s = now_s();
    std::vector<std::thread> readers;
    for (int t = 0; t < threads; ++t)
      readers.emplace_back([&, t] {
        uint64_t sum = 0;
        for (size_t w = words.size() * t / threads, end = words.size() * (t + 1) / threads; w < end; ++w)
          sum += words[w];
        sums[t] += sum;  // kept: the reads cannot be dropped
      });
    for (auto& reader : readers) reader.join();
    best_s = std::min(best_s, now_s() - begin_s);
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total == kReads * words.size() ? static_cast<double>(bytes) / best_s / 1e9 : 0;
}

}  // namespace

double read_limit_gbps(Device device, size_t bytes, int threads) {
  return device.is_cuda() ? kernels::cuda_read_limit_gbps(device, bytes)
                          : cpu_read_limit_gbps(bytes, std::max(1, threads));
}

double gemm_rate_tflops(Device device, DType dtype) {
  return device.is_cuda() ? kernels::cuda_gemm_rate_tflops(device, dtype) : 0;
}

}  // namespace pipeinfer

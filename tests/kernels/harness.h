// What the kernel tests share: they run on the CPU (test_kernels) or on a GPU (test_kernels_gpu), on fresh random
// inputs, against references in double. Outputs are poisoned first, and guarded behind their end.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "../../src/kernels/cpu/element.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::kernels {

inline constexpr Device kDevice{DeviceKind::TEST_DEVICE, 0};
/// Whether the GPU is that of tests/emulator: problems should be small.
inline bool is_emulated() { return kDevice.is_cuda() && device_info(kDevice).name == "emulator"; }

inline constexpr DType kDTypes[] = {DType::fp32, DType::fp16, DType::bf16};

/// Half a unit in the last place, and room for sums in fp32.
inline double tolerance(DType dtype) {
  return dtype == DType::fp32 ? 1e-5 : dtype == DType::fp16 ? 0x1p-10 : 0x1p-7;
}

/// A device array of T with its host copy; a guard behind it catches writes beyond the end.
template <typename T>
class Array {
 public:
  explicit Array(size_t n) : n_(n), buffer_(kDevice, n * sizeof(T) + kGuard, "test array") {}
  Array(const std::vector<T>& values, Stream& stream) : Array(values.size()) { write(values, stream); }

  T* data() const { return buffer_.template as<T>(); }
  size_t size() const { return n_; }

  void write(const std::vector<T>& values, Stream& stream) {
    fill_async(buffer_.data(), kPoison, buffer_.bytes(), stream);
    copy_async(buffer_.data(), values.data(), n_ * sizeof(T), stream);
    wait(stream);
  }

  void poison(Stream& stream) { fill_async(buffer_.data(), kPoison, buffer_.bytes(), stream); }

  std::vector<T> read(Stream& stream) const {
    std::vector<T> values(n_);
    uint8_t guard[kGuard];
    copy_async(values.data(), buffer_.data(), n_ * sizeof(T), stream);
    copy_async(guard, buffer_.template as<char>() + n_ * sizeof(T), kGuard, stream);
    wait(stream);
    for (uint8_t byte : guard) EXPECT_EQ(byte, kPoison) << "written beyond the end";
    return values;
  }

  static void wait(Stream& stream) {
    Event done(kDevice);
    done.record(stream);
    ASSERT_TRUE(wait_until(done, 60));
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr uint8_t kPoison = 0xff;  // NaN in every element type
  size_t n_;
  DeviceBuffer buffer_;
};

/// A device array of a run-time element type; on the host its values are floats.
class Tensor {
 public:
  Tensor(DType dtype, size_t n, Stream& stream) : dtype_(dtype), n_(n), bytes_(n * dtype_size(dtype)) {
    bytes_.poison(stream);
  }
  Tensor(DType dtype, const std::vector<float>& values, Stream& stream)
      : Tensor(dtype, values.size(), stream) {
    write(values, stream);
  }

  void* data() const { return bytes_.data(); }

  void write(const std::vector<float>& values, Stream& stream) {
    std::vector<uint8_t> bytes(bytes_.size());
    cpu::with_type(dtype_, [&](auto type) {
      using T = decltype(type);
      for (size_t i = 0; i < n_; ++i) {
        const T value = cpu::from_float<T>(values[i]);
        std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
      }
    });
    bytes_.write(bytes, stream);
  }

  std::vector<uint8_t> bytes(Stream& stream) const { return bytes_.read(stream); }

  std::vector<float> read(Stream& stream) const {
    const std::vector<uint8_t> bytes = bytes_.read(stream);
    std::vector<float> values(n_);
    cpu::with_type(dtype_, [&](auto type) {
      using T = decltype(type);
      for (size_t i = 0; i < n_; ++i) {
        T value;
        std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
        values[i] = cpu::to_float(value);
      }
    });
    return values;
  }

 private:
  DType dtype_;
  size_t n_;
  Array<uint8_t> bytes_;
};

/// A stream and fresh random numbers; the seed is printed where a test fails.
class KernelTest : public ::testing::Test {
 protected:
  KernelTest() : stream_((use_device(kDevice), kDevice)), seed_(std::random_device{}()), rng_(seed_) {}
  void TearDown() override {
    if (HasFailure()) std::cout << "seed " << seed_ << "\n";
  }

  std::vector<float> normal(size_t n, float sigma = 1) {
    std::normal_distribution<float> distribution(0, sigma);
    std::vector<float> values(n);
    for (float& value : values) value = distribution(rng_);
    return values;
  }
  /// Uniform in [low, high].
  int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }

  /// Random elements, already rounded to `dtype`.
  Tensor random(DType dtype, size_t n, float sigma = 1) { return Tensor(dtype, normal(n, sigma), stream_); }

  template <typename T>
  Array<T> upload(const std::vector<T>& values) {
    return Array<T>(values, stream_);
  }

  Stream stream_;
  const unsigned seed_;
  std::mt19937 rng_;
};

/// Every value within `tolerance` of the reference, relative to the larger of it and `scale`.
inline void expect_near(const std::vector<float>& values, const std::vector<double>& reference,
                        double tolerance, const std::string& what, double scale = 1) {
  ASSERT_EQ(values.size(), reference.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = std::abs(values[i] - reference[i]) / std::max(std::abs(reference[i]), scale);
    ASSERT_TRUE(error <= tolerance) << what << ": element " << i << " is " << values[i] << ", expected "
                                    << reference[i];
  }
}

}  // namespace pipeinfer::kernels

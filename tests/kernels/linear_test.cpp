// Only on GPUs: on the CPU, products are ATen's.
#include <numeric>

#include "harness.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer::kernels {
namespace {

class Linear : public KernelTest {};

TEST_F(Linear, EqualsTheProductInDouble) {
  const struct {
    int rows, out, in;
  } sizes[] = {{1, 8, 8}, {1, 600, 200}, {3, 101, 100}, {64, 544, 200}, {17, 1000, 3200}};
  for (DType dtype : kDTypes) {
    for (DType out_dtype : {dtype, DType::fp32}) {
      for (bool with_bias : {false, true}) {
        for (const auto& size : sizes) {
          const Tensor x = random(dtype, size_t(size.rows) * size.in),
                       weight = random(dtype, size_t(size.out) * size.in);
          const Tensor bias = random(dtype, size.out, 10);
          Tensor out(out_dtype, size_t(size.rows) * size.out, stream_);
          linear_cuda(out.data(), x.data(), weight.data(), with_bias ? bias.data() : nullptr, size.rows,
                      size.out, size.in, dtype, out_dtype, stream_);
          const std::vector<float> a = x.read(stream_), b = weight.read(stream_), c = bias.read(stream_);
          std::vector<double> expected;
          for (int i = 0; i < size.rows; ++i) {
            for (int j = 0; j < size.out; ++j) {
              const auto row = a.begin() + size_t(i) * size.in;
              expected.push_back(std::inner_product(row, row + size.in, b.begin() + size_t(j) * size.in,
                                                    with_bias ? double{c[j]} : 0.0));
            }
          }
          // Rounded to 16 bits before the bias is added, and after; fp32 would show TF32's 10 bits.
          expect_near(out.read(stream_), expected, 2 * tolerance(out_dtype),
                      cat(dtype_name(dtype), " to ", dtype_name(out_dtype), ", ", size.rows, " x ", size.out,
                          " x ", size.in),
                      std::sqrt(double(size.in)));
        }
      }
    }
  }
}

TEST_F(Linear, TwoStreamsOfOneThreadDoNotDisturbEachOther) {
  Stream other(kDevice);
  const int n = 512, rounds = 50;
  const Tensor x = random(DType::fp16, n * n), a = random(DType::fp16, n * n), b = random(DType::fp16, n * n);
  Tensor out_a(DType::fp32, n * n, stream_), out_b(DType::fp32, n * n, stream_);
  const auto product = [&](const Tensor& out, const Tensor& weight, Stream& stream) {
    linear_cuda(out.data(), x.data(), weight.data(), nullptr, n, n, n, DType::fp16, DType::fp32, stream);
  };
  product(out_a, a, stream_);
  product(out_b, b, stream_);
  const std::vector<float> alone_a = out_a.read(stream_), alone_b = out_b.read(stream_);
  for (int i = 0; i < rounds; ++i) {
    product(out_a, a, stream_);
    product(out_b, b, other);
  }
  Array<float>::wait(other);
  EXPECT_EQ(out_a.read(stream_), alone_a);
  EXPECT_EQ(out_b.read(stream_), alone_b);
}

TEST_F(Linear, RefusesAnotherOutputType) {
  EXPECT_THROW(linear_cuda(nullptr, nullptr, nullptr, nullptr, 1, 1, 1, DType::fp32, DType::fp16, stream_),
               Error);
}

}  // namespace
}  // namespace pipeinfer::kernels

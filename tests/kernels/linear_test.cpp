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
    for (Epilogue epilogue : {Epilogue::store, Epilogue::store_fp32, Epilogue::add}) {
      const DType out_dtype = epilogue == Epilogue::store_fp32 ? DType::fp32 : dtype;
      for (bool with_bias : {false, true}) {
        for (const auto& size : sizes) {
          if (is_emulated() && size.out * size.in > 1000000) continue;
          const Tensor x = random(dtype, size_t(size.rows) * size.in),
                       weight = random(dtype, size_t(size.out) * size.in);
          const Tensor bias = random(dtype, size.out, 10);
          Tensor out(out_dtype, size_t(size.rows) * size.out, stream_);
          if (epilogue == Epilogue::add) out.write(normal(size_t(size.rows) * size.out), stream_);
          const std::vector<float> before = out.read(stream_);
          linear_cuda(out.data(), x.data(), weight.data(), with_bias ? bias.data() : nullptr, size.rows,
                      size.out, size.in, dtype, epilogue, stream_);
          const std::vector<float> a = x.read(stream_), b = weight.read(stream_), c = bias.read(stream_);
          std::vector<double> expected;
          for (int i = 0; i < size.rows; ++i) {
            for (int j = 0; j < size.out; ++j) {
              const auto row = a.begin() + size_t(i) * size.in;
              const double start =
                  (with_bias ? c[j] : 0.0) + (epilogue == Epilogue::add ? before[expected.size()] : 0.0);
              expected.push_back(
                  std::inner_product(row, row + size.in, b.begin() + size_t(j) * size.in, start));
            }
          }
          // Rounded to 16 bits before out and the bias are added, and after; fp32 would show TF32's 10 bits.
          const int roundings = epilogue == Epilogue::add ? 3 : 2;
          expect_near(out.read(stream_), expected, roundings * tolerance(out_dtype),
                      cat(dtype_name(dtype), ", epilogue ", int(epilogue), ", ", size.rows, " x ", size.out,
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
    linear_cuda(out.data(), x.data(), weight.data(), nullptr, n, n, n, DType::fp16, Epilogue::store_fp32,
                stream);
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

TEST_F(Linear, RefusesAnActivation) {
  EXPECT_THROW(
      linear_cuda(nullptr, nullptr, nullptr, nullptr, 1, 2, 1, DType::fp16, Epilogue::silu_mul, stream_),
      Error);
}

class FusedLinearTest : public KernelTest {
 protected:
  // A product with everything around it as `p` says (its pointers are set here), against the same in double.
  void check(FusedLinear p, DType dtype, bool norm, bool bias, bool pick) {
    const int x_rows = pick ? p.n_rows + 5 : p.n_rows;
    const bool pairs = p.epilogue == Epilogue::silu_mul;
    const int columns = pairs ? p.n_out / 2 : p.n_out;
    const DType out_dtype = p.epilogue == Epilogue::store_fp32 ? DType::fp32 : dtype;
    const Tensor x = random(dtype, size_t(x_rows) * p.n_in),
                 weight = random(dtype, size_t(p.n_out) * p.n_in, 1 / std::sqrt(float(p.n_in))),
                 biases = random(dtype, p.n_out), norms = random(dtype, p.n_in);
    Tensor out(out_dtype, size_t(p.n_rows) * columns, stream_);
    if (p.epilogue == Epilogue::add) out.write(normal(size_t(p.n_rows) * columns), stream_);
    std::vector<int32_t> rows;
    for (int i = 0; i < p.n_rows; ++i) rows.push_back(pick ? integer(0, x_rows - 1) : i);
    const auto row = upload(rows);
    const std::vector<float> a = x.read(stream_), b = weight.read(stream_), c = biases.read(stream_),
                             d = norms.read(stream_), before = out.read(stream_);
    p.out = out.data();
    p.x = x.data();
    p.row = pick ? row.data() : nullptr;
    p.weight = weight.data();
    p.bias = bias ? biases.data() : nullptr;
    Tensor scaled(dtype, size_t(x_rows) * p.n_in, stream_), next(dtype, size_t(p.n_rows) * p.n_out, stream_);
    Tensor squares(DType::fp32, size_t(x_rows) * kNormParts, stream_),
        next_squares(DType::fp32, size_t(p.n_rows) * kNormParts, stream_);
    const auto split = [](const Tensor& weight, Tensor& scaled, Tensor& squares, int parts) {
      return SplitNorm{.weight = weight.data(),
                       .eps = 1e-6f,
                       .scaled = scaled.data(),
                       .squares = static_cast<float*>(squares.data()),
                       .parts = parts};
    };
    if (norm) {
      p.norm = split(norms, scaled, squares, norm_parts(p.n_in, x_rows, dtype, kDevice));
      p.x = scaled.data();
      split_norm(x.data(), p.norm, x_rows, p.n_in, dtype, stream_);
    }
    if (p.epilogue == Epilogue::add) {
      const int parts = norm_parts(p.n_out, p.n_rows, dtype, kDevice);
      p.next = split(biases, next, next_squares, parts);
    }
    fused_linear(p, dtype, stream_);

    std::vector<double> expected;
    for (int i = 0; i < p.n_rows; ++i) {
      const float* from = &a[size_t(rows[i]) * p.n_in];
      const double squares = std::inner_product(from, from + p.n_in, from, 0.0);
      const double scale = norm ? 1 / std::sqrt(squares / p.n_in + 1e-6) : 1;
      std::vector<double> sums;
      for (int j = 0; j < p.n_out; ++j) {
        double sum = 0;
        for (int k = 0; k < p.n_in; ++k)
          sum += double{from[k]} * (norm ? d[k] : 1) * b[size_t(j) * p.n_in + k];
        sums.push_back(sum * scale + (bias ? c[j] : 0));
      }
      for (int j = 0; j < columns; ++j)
        expected.push_back(pairs ? sums[j] / (1 + std::exp(-sums[j])) * sums[columns + j]
                           : p.epilogue == Epilogue::add ? before[expected.size()] + sums[j]
                                                         : sums[j]);
    }
    const std::string what =
        cat(dtype_name(dtype), " ", p.n_rows, " x ", p.n_out, " x ", p.n_in, ", epilogue ", int(p.epilogue),
            norm ? ", norm" : "", bias ? ", bias" : "", pick ? ", picked rows" : "");
    // x * norm weight is rounded too.
    const std::vector<float> result = out.read(stream_);
    expect_near(result, expected, 4 * tolerance(norm ? dtype : out_dtype), what, 2);
    if (p.epilogue != Epilogue::add) return;
    std::vector<double> products;
    for (size_t i = 0; i < result.size(); ++i) products.push_back(double{result[i]} * c[i % p.n_out]);
    expect_near(next.read(stream_), products, tolerance(dtype), cat(what, ", scaled"), 2);
    if (p.n_out % 8 != 0) return;
    const Tensor ones(dtype, std::vector<float>(p.n_out, 1),
                      stream_);  // the product after it: a sum of norm(out)
    Tensor after(DType::fp32, p.n_rows, stream_);
    FusedLinear sum{.out = after.data(),
                    .x = next.data(),
                    .weight = ones.data(),
                    .norm = p.next,
                    .n_rows = p.n_rows,
                    .n_out = 1,
                    .n_in = p.n_out,
                    .epilogue = Epilogue::store_fp32};
    fused_linear(sum, dtype, stream_);
    std::vector<double> norm_sums;
    for (int i = 0; i < p.n_rows; ++i) {
      const float* row = &result[size_t(i) * p.n_out];
      const double scale = 1 / std::sqrt(std::inner_product(row, row + p.n_out, row, 0.0) / p.n_out + 1e-6);
      norm_sums.push_back(scale * std::accumulate(&products[size_t(i) * p.n_out],
                                                  &products[size_t(i) * p.n_out] + p.n_out, 0.0));
    }
    expect_near(after.read(stream_), norm_sums, 4 * tolerance(dtype), cat(what, ", the norm behind it"),
                std::sqrt(double(p.n_out)));
  }
};

TEST_F(FusedLinearTest, EqualsTheSameInDouble) {
  if (!fused_rows(64, DType::fp16, kDevice)) GTEST_SKIP() << "needs compute capability 8.0";
  const struct {
    int rows, out, in;
  } sizes[] = {{1, 2, 8},       {1, 200, 200},   {3, 348, 136},   {8, 1300, 640},  {9, 64, 72},
               {16, 400, 200},  {5, 34, 1288},   {1, 9600, 3200}, {16, 640, 8640}, {7, 17280, 320},
               {2, 32000, 64},  {13, 3200, 512}, {17, 64, 72},    {64, 400, 200},  {33, 352, 136},
               {31, 1304, 640}, {64, 9600, 128}, {40, 3200, 512}, {50, 17280, 64}, {33, 32000, 64},
               {24, 4096, 320}, {17, 3200, 2048}};
  for (DType dtype : {DType::fp16, DType::bf16})
    for (const auto& size : sizes) {
      if (is_emulated() && size.rows * size.out * size.in > 10000000) continue;
      if (size.rows > fused_rows(size.in, dtype, kDevice)) continue;
      for (Epilogue epilogue : {Epilogue::store, Epilogue::store_fp32, Epilogue::add, Epilogue::silu_mul}) {
        FusedLinear p{.n_rows = size.rows, .n_out = size.out, .n_in = size.in, .epilogue = epilogue};
        check(p, dtype, integer(0, 1), integer(0, 1), epilogue == Epilogue::store_fp32 && integer(0, 1));
      }
    }
}

// Each launch may start while the one before it runs: a chain in which every product reads what the last one wrote.
TEST_F(FusedLinearTest, ChainsWaitForTheirInputs) {
  if (!fused_rows(64, DType::fp16, kDevice)) GTEST_SKIP() << "needs compute capability 8.0";
  for (int rows : {4, 40}) {
    if (rows > fused_rows(64, DType::fp16, kDevice)) continue;
    const int n = is_emulated() ? 128 : 1024, rounds = is_emulated() ? 20 : 200;
    const Tensor weight = random(DType::fp16, n * n, 1 / std::sqrt(float(n))),
                 ones(DType::fp16, std::vector<float>(n, 1), stream_);
    const std::vector<float> start = normal(rows * n);
    const auto chain = [&](bool wait) {
      Tensor a(DType::fp16, start, stream_), b(DType::fp16, start, stream_), x(DType::fp16, start, stream_);
      Tensor squares(DType::fp32, size_t(rows) * kNormParts, stream_);
      const SplitNorm norm{.weight = ones.data(),
                           .scaled = b.data(),
                           .squares = static_cast<float*>(squares.data()),
                           .parts = norm_parts(n, rows, DType::fp16, kDevice)};
      split_norm(a.data(), norm, rows, n, DType::fp16, stream_);
      for (int i = 0; i < rounds; ++i) {  // a = norm(x) * weight^T; x += a * weight^T
        const bool adds = i % 2;
        FusedLinear p{.n_rows = rows, .n_out = n, .n_in = n};
        p.x = (adds ? a : b).data();
        p.out = (adds ? x : a).data();
        p.weight = weight.data();
        (adds ? p.next : p.norm) = norm;
        if (adds) p.epilogue = Epilogue::add;
        fused_linear(p, DType::fp16, stream_);
        if (wait) Array<float>::wait(stream_);
      }
      return a.read(stream_);
    };
    const std::vector<float> alone = chain(true);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(chain(false), alone) << rows << " rows";
  }
}

}  // namespace
}  // namespace pipeinfer::kernels

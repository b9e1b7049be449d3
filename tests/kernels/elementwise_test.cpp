#include "harness.h"

namespace pipeinfer::kernels {
namespace {

constexpr int kSizes[] = {1, 7, 64, 100, 200, 1000, 3200, 4096};

class Elementwise : public KernelTest {};

TEST_F(Elementwise, EmbedTakesHostTokensAndSlots) {
  for (DType dtype : kDTypes) {
    for (int hidden : kSizes) {
      const int vocab = 50, slots = 9, n = integer(1, 20);
      const Tensor table = random(dtype, vocab * hidden);
      std::vector<int32_t> token(n), slot(n), last(slots);
      for (int32_t& id : last) id = integer(0, vocab - 1);
      for (int i = 0; i < n; ++i) {
        token[i] = integer(0, 2) ? integer(0, vocab - 1) : -1;
        slot[i] = integer(0, slots - 1);
      }
      Tensor out(dtype, n * hidden, stream_);
      embed(out.data(), table.data(), upload(token).data(), upload(slot).data(), upload(last).data(), n,
            hidden, dtype, stream_);
      const std::vector<float> rows = table.read(stream_), values = out.read(stream_);
      for (int i = 0; i < n; ++i) {
        const int id = token[i] < 0 ? last[slot[i]] : token[i];
        for (int j = 0; j < hidden; ++j) ASSERT_EQ(values[i * hidden + j], rows[id * hidden + j]);
      }
    }
  }
}

TEST_F(Elementwise, UploadsTablesOfAnySize) {
  PinnedBuffer from(kDevice, 40000, "tables");
  for (size_t bytes : {16, 48, 4096, 40000}) {
    std::vector<uint8_t> values(bytes);
    for (uint8_t& value : values) value = static_cast<uint8_t>(integer(0, 255));
    std::copy(values.begin(), values.end(), from.as<uint8_t>());
    Array<uint8_t> to(std::vector<uint8_t>(bytes), stream_);
    upload_tables(to.data(), from.data(), bytes, stream_);
    EXPECT_EQ(to.read(stream_), values);
  }
}

std::vector<double> rms_norm_reference(const std::vector<float>& x, const std::vector<float>& weight, int row,
                                       double eps) {
  const int hidden = static_cast<int>(weight.size());
  double squares = 0;
  for (int j = 0; j < hidden; ++j) squares += double{x[row * hidden + j]} * x[row * hidden + j];
  std::vector<double> out(hidden);
  for (int j = 0; j < hidden; ++j)
    out[j] = x[row * hidden + j] / std::sqrt(squares / hidden + eps) * weight[j];
  return out;
}

TEST_F(Elementwise, RmsNorm) {
  for (DType dtype : kDTypes) {
    for (int hidden : kSizes) {
      const int n = integer(1, 9);
      const Tensor x = random(dtype, n * hidden, 2), weight = random(dtype, hidden);
      Tensor out(dtype, n * hidden, stream_);
      rms_norm(out.data(), x.data(), weight.data(), nullptr, n, hidden, 1e-6f, dtype, stream_);
      std::vector<double> expected;
      for (int i = 0; i < n; ++i) {
        const std::vector<double> row = rms_norm_reference(x.read(stream_), weight.read(stream_), i, 1e-6);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      expect_near(out.read(stream_), expected, tolerance(dtype), cat("hidden ", hidden));
    }
  }
}

TEST_F(Elementwise, RmsNormPicksRows) {
  for (DType dtype : kDTypes) {
    for (int hidden : kSizes) {
      const Tensor x = random(dtype, 12 * hidden), weight = random(dtype, hidden);
      const std::vector<int32_t> row{11, 3, 3, 0, 7};
      Tensor out(dtype, row.size() * hidden, stream_);
      rms_norm(out.data(), x.data(), weight.data(), upload(row).data(), static_cast<int>(row.size()), hidden,
               1e-5f, dtype, stream_);
      std::vector<double> expected;
      for (int32_t from : row) {
        const std::vector<double> norm =
            rms_norm_reference(x.read(stream_), weight.read(stream_), from, 1e-5);
        expected.insert(expected.end(), norm.begin(), norm.end());
      }
      expect_near(out.read(stream_), expected, tolerance(dtype), cat("hidden ", hidden));
    }
  }
}

TEST_F(Elementwise, SiluMul) {
  for (DType dtype : kDTypes) {
    for (int intermediate : {1, 7, 100, 544, 8640}) {
      const int n = integer(1, 5);
      const Tensor gate_up = random(dtype, 2 * n * intermediate, 4);
      Tensor out(dtype, n * intermediate, stream_);
      silu_mul(out.data(), gate_up.data(), n, intermediate, dtype, stream_);
      const std::vector<float> in = gate_up.read(stream_);
      std::vector<double> expected;
      for (int t = 0; t < n; ++t) {
        for (int i = 0; i < intermediate; ++i) {
          const double gate = in[2 * t * intermediate + i], up = in[(2 * t + 1) * intermediate + i];
          expected.push_back(gate / (1 + std::exp(-gate)) * up);
        }
      }
      expect_near(out.read(stream_), expected, tolerance(dtype), cat("intermediate ", intermediate));
    }
  }
}

TEST_F(Elementwise, SiluOfFarValuesIsFinite) {
  const Tensor gate_up(DType::fp32, {-1e4f, 1e4f, 1, 1}, stream_);
  Tensor out(DType::fp32, 2, stream_);
  silu_mul(out.data(), gate_up.data(), 1, 2, DType::fp32, stream_);
  const std::vector<float> values = out.read(stream_);
  EXPECT_EQ(values[0], 0);
  EXPECT_EQ(values[1], 1e4f);
}

}  // namespace
}  // namespace pipeinfer::kernels

#include "pipeinfer/checkpoint/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace pipeinfer {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// The definition of binary16, by arithmetic.
double half_value(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int mantissa = half & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

TEST(Convert, EveryHalfWidensToItsValueAndBack) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = half_to_float(half);
    if ((half & 0x7c00) != 0x7c00) {
      ASSERT_EQ(value, half_value(half)) << bits;
      ASSERT_EQ(std::signbit(value), bits >= 0x8000) << bits;
    } else if ((half & 0x3ff) == 0) {
      ASSERT_EQ(value, bits < 0x8000 ? kInf : -kInf);
    } else {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(half_to_float(float_to_half(value)))) << bits;
      continue;
    }
    ASSERT_EQ(float_to_half(value), half) << bits;
  }
}

TEST(Convert, HalfRoundsToNearestEven) {
  // Between each pair of neighbours: below, at and above the middle.
  for (uint16_t low = 0; low < 0x7bff; ++low) {
    const uint16_t high = low + 1;
    const auto middle = static_cast<float>((half_value(low) + half_value(high)) / 2);
    ASSERT_EQ(float_to_half(middle), low % 2 == 0 ? low : high) << low;
    ASSERT_EQ(float_to_half(std::nextafter(middle, 0.0f)), low) << low;
    ASSERT_EQ(float_to_half(std::nextafter(middle, kInf)), high) << low;
    ASSERT_EQ(float_to_half(-middle), 0x8000 | (low % 2 == 0 ? low : high)) << low;
  }
}

TEST(Convert, HalfOverflowsToInfinity) {
  EXPECT_EQ(float_to_half(65504), 0x7bff);
  EXPECT_EQ(float_to_half(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(float_to_half(65520), 0x7c00);
  EXPECT_EQ(float_to_half(-1e30f), 0xfc00);
  EXPECT_EQ(float_to_half(kInf), 0x7c00);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(float_to_half(-0.0f), 0x8000);
}

TEST(Convert, BfloatRoundsToNearestEven) {
  const auto round = [](uint32_t bits) { return float_to_bfloat(std::bit_cast<float>(bits)); };
  EXPECT_EQ(round(0x3f800000), 0x3f80);  // 1
  EXPECT_EQ(round(0x3f808000), 0x3f80);  // a tie goes to the even one
  EXPECT_EQ(round(0x3f818000), 0x3f82);
  EXPECT_EQ(round(0x3f808001), 0x3f81);
  EXPECT_EQ(round(0x3f807fff), 0x3f80);
  EXPECT_EQ(round(0x00000001), 0x0000);  // subnormals
  EXPECT_EQ(round(0x00018000), 0x0002);
  EXPECT_EQ(round(0x7f7fffff), 0x7f80);  // the largest float overflows
  EXPECT_EQ(round(0xff800000), 0xff80);
  EXPECT_TRUE(std::isnan(bfloat_to_float(round(0x7f800001))));  // must not become infinity
  EXPECT_TRUE(std::isnan(bfloat_to_float(round(0xffffffff))));
  for (uint32_t bits = 0; bits < 0x7f80; ++bits)
    ASSERT_EQ(float_to_bfloat(bfloat_to_float(static_cast<uint16_t>(bits))), bits);
}

TEST(Convert, RangesOfAllPairs) {
  const std::vector<float> values = {0, 1, -2.5f, 0.15625f, 1024, -0.0078125f, 96};  // exact in all types
  const auto of = [&](DType type) {
    std::vector<char> bytes(values.size() * dtype_size(type) + 1);  // one more: an unaligned start
    convert(values.data(), DType::fp32, bytes.data(), type, values.size());
    return bytes;
  };
  for (const DType from : {DType::fp32, DType::fp16, DType::bf16}) {
    auto source = of(from);
    source.insert(source.begin(), 'x');
    for (const DType to : {DType::fp32, DType::fp16, DType::bf16}) {
      std::vector<char> result(values.size() * dtype_size(to) + 1);
      convert(source.data() + 1, from, result.data(), to, values.size());
      EXPECT_EQ(result, of(to)) << dtype_name(from) << " to " << dtype_name(to);
    }
  }
}

}  // namespace
}  // namespace pipeinfer

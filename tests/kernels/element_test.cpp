#include "../../src/kernels/cpu/element.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "../../src/kernels/philox.h"
#include "../../src/kernels/sampling_math.h"
#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::kernels::cpu {
namespace {

/// The value of binary16 bits, from the definition in IEEE 754.
double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

TEST(Element, EveryHalfIsReadAndWrittenBack) {
  for (int bits = 0; bits < 65536; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const float value = to_float(half);
    if (std::isnan(half_value(half.bits))) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(std::isnan(to_float(from_float<Half>(value))));
    } else {
      ASSERT_EQ(value, half_value(half.bits)) << bits;
      ASSERT_EQ(from_float<Half>(value).bits, half.bits);
    }
  }
}

TEST(Element, HalfRoundsToNearestEven) {
  for (int bits = 0; bits < 0x7bff; ++bits) {  // between each finite half and the next
    const double low = half_value(bits), high = half_value(bits + 1), middle = (low + high) / 2;
    const float tie = static_cast<float>(middle);
    ASSERT_EQ(from_float<Half>(tie).bits, bits + (bits & 1)) << bits;
    ASSERT_EQ(from_float<Half>(std::nextafter(tie, 0.0f)).bits, bits);
    ASSERT_EQ(from_float<Half>(-std::nextafter(tie, 1e9f)).bits, (bits + 1) | 0x8000);
  }
  EXPECT_EQ(from_float<Half>(65519.99f).bits, 0x7bff);
  EXPECT_EQ(from_float<Half>(65520.0f).bits, 0x7c00);
  EXPECT_EQ(from_float<Half>(std::numeric_limits<float>::max()).bits, 0x7c00);
  EXPECT_EQ(from_float<Half>(std::numeric_limits<float>::denorm_min()).bits, 0);
}

TEST(Element, BFloat16RoundsToNearestEven) {
  for (int bits = 0; bits < 0x7f7f; ++bits) {
    const BFloat16 low{static_cast<uint16_t>(bits)};
    ASSERT_EQ(from_float<BFloat16>(to_float(low)).bits, bits);
    const float tie = float_of(uint32_t(bits) << 16 | 0x8000u);
    ASSERT_EQ(from_float<BFloat16>(tie).bits, bits + (bits & 1));
    ASSERT_EQ(from_float<BFloat16>(std::nextafter(tie, 0.0f)).bits, bits);
    ASSERT_EQ(from_float<BFloat16>(-std::nextafter(tie, INFINITY)).bits, (bits + 1) | 0x8000);
  }
  EXPECT_TRUE(std::isnan(to_float(from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(to_float(from_float<BFloat16>(float_of(0x7f800001u)))));
  EXPECT_EQ(from_float<BFloat16>(INFINITY).bits, 0x7f80);
}

TEST(Philox, KnownAnswersOfRandom123) {
  const auto expect = [](Philox4 counter, uint32_t key0, uint32_t key1, Philox4 expected) {
    const Philox4 bits = philox4x32_10(counter, key0, key1);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(bits.v[i], expected.v[i]) << i;
  };
  expect({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(SamplingMath, CandidatesSortByLogitThenId) {
  const float logits[] = {-INFINITY, -1e30f, -2, -1e-40f, 0, 1e-40f, 1, 3e38f, INFINITY};
  for (size_t i = 0; i + 1 < std::size(logits); ++i)
    EXPECT_LT(candidate(logits[i], 0), candidate(logits[i + 1], kMaxVocab - 1));
  EXPECT_GT(candidate(1, 4), candidate(1, 5));
  EXPECT_EQ(candidate(-0.0f, 3), candidate(0.0f, 3));
  EXPECT_EQ(candidate(NAN, 3), candidate(-INFINITY, 3));
  EXPECT_EQ(candidate(-NAN, 3), candidate(-INFINITY, 3));
  for (float logit : logits) EXPECT_EQ(candidate_logit(candidate(logit, 77)), logit);
  EXPECT_EQ(candidate_id(candidate(-3, kMaxVocab - 1)), kMaxVocab - 1);
}

TEST(SamplingMath, ScaleDrawIsTheHighHalfOfTheProduct) {
  std::mt19937_64 rng(std::random_device{}());
  for (int i = 0; i < 10000; ++i) {
    const uint64_t draw = rng(), total = rng() >> rng() % 64;
    EXPECT_EQ(scale_draw(draw, total),
              static_cast<uint64_t>(static_cast<unsigned __int128>(draw) * total >> 64));
  }
  EXPECT_EQ(scale_draw(~uint64_t{0}, 5), 4u);
}

}  // namespace
}  // namespace pipeinfer::kernels::cpu

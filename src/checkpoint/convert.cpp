// The element functions are branch-free selects on bit patterns, so that the loops below vectorize on any
// CPU. The steps: Fabian Giesen, "half<->float conversions" (https://gist.github.com/rygorous/2156668).
#include "pipeinfer/checkpoint/convert.h"

#include <bit>
#include <cstring>

namespace pipeinfer {
namespace {

constexpr uint32_t kInfinity32 = 0x7f800000;  // bits of a binary32
constexpr uint16_t kInfinity16 = 0x7c00, kNaN16 = 0x7e00;
constexpr uint32_t kShift = 13;                         // extra mantissa bits of a binary32
constexpr uint32_t kHalfExponent = 0x7c00u << kShift;   // of a half, at a binary32's place
constexpr uint32_t kRebias = (127 - 15) << 23;          // exponent bias 15 -> 127
constexpr uint32_t kSmallestNormal = (127 - 14) << 23;  // 2^-14: below it a half is subnormal
constexpr uint32_t kTooLarge = (127 + 16) << 23;        // 2^16: above every half, before rounding

template <typename From, typename To, typename Convert>
void convert_all(const void* from, void* to, size_t count, Convert convert_one) {
  const auto* in = static_cast<const char*>(from);
  auto* out = static_cast<To*>(to);
  for (size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, in + i * sizeof(From), sizeof(From));
    out[i] = convert_one(value);
  }
}

inline float widen_half(uint16_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << kShift;
  const uint32_t exponent = magnitude & kHalfExponent;
  uint32_t bits = magnitude + kRebias;
  // Subnormals: 2^-14 + m is a normal binary32 with m in its mantissa; take the 2^-14 off again.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(bits + (1u << 23)) -
                                                     std::bit_cast<float>(kSmallestNormal));
  bits = exponent == kHalfExponent ? bits + kRebias : bits;  // infinity and NaN: exponent 31 -> 255
  bits = exponent == 0 ? subnormal : bits;
  return std::bit_cast<float>(bits | (half & 0x8000u) << 16);
}

inline uint16_t narrow_to_half(float value) {
  const uint32_t all = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = all & 0x7fffffff;
  // Subnormals: adding 0.5 puts their 10 bits at the end of the mantissa, rounded by the adder.
  constexpr uint32_t kHalf = (127 - 1) << 23;
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(kHalf)) - kHalf;
  const uint32_t odd = magnitude >> kShift & 1;
  const uint32_t normal = (magnitude - kRebias + 0xfff + odd) >> kShift;
  uint32_t half = magnitude < kSmallestNormal ? subnormal : normal;
  half = magnitude >= kTooLarge ? kInfinity16 : half;
  half = magnitude > kInfinity32 ? kNaN16 : half;
  return static_cast<uint16_t>(half | (all >> 16 & 0x8000));
}

inline float widen_bfloat(uint16_t bfloat) {
  return std::bit_cast<float>(static_cast<uint32_t>(bfloat) << 16);
}

inline uint16_t narrow_to_bfloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const uint32_t quiet_nan = bits >> 16 | 0x40;  // rounding could carry a NaN into infinity
  return static_cast<uint16_t>((bits & 0x7fffffff) > kInfinity32 ? quiet_nan : rounded);
}

template <typename From, typename Widen>
void convert_from(const void* from, void* to, DType to_type, size_t count, Widen widen) {
  switch (to_type) {
    case DType::fp32:
      return convert_all<From, float>(from, to, count, widen);
    case DType::fp16:
      return convert_all<From, uint16_t>(from, to, count, [&](From v) { return narrow_to_half(widen(v)); });
    case DType::bf16:
      return convert_all<From, uint16_t>(from, to, count, [&](From v) { return narrow_to_bfloat(widen(v)); });
  }
}

}  // namespace

float half_to_float(uint16_t half) { return widen_half(half); }
uint16_t float_to_half(float value) { return narrow_to_half(value); }
float bfloat_to_float(uint16_t bfloat) { return widen_bfloat(bfloat); }
uint16_t float_to_bfloat(float value) { return narrow_to_bfloat(value); }

void convert(const void* from, DType from_type, void* to, DType to_type, size_t count) {
  if (from_type == to_type) {
    std::memcpy(to, from, count * dtype_size(to_type));
    return;
  }
  switch (from_type) {
    case DType::fp32:
      return convert_from<float>(from, to, to_type, count, [](float v) { return v; });
    case DType::fp16:
      return convert_from<uint16_t>(from, to, to_type, count, [](uint16_t v) { return widen_half(v); });
    case DType::bf16:
      return convert_from<uint16_t>(from, to, to_type, count, [](uint16_t v) { return widen_bfloat(v); });
  }
}

}  // namespace pipeinfer

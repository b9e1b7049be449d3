// Elements of tensors on the CPU: computed as float, stored as fp32, fp16 (IEEE 754 binary16) or bf16.
#pragma once

#include <cstdint>
#include <cstring>

#include "pipeinfer/base/types.h"

namespace pipeinfer::kernels::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }

inline float to_float(Half value) {
  // The exponent and mantissa moved to their places read 2^-112 times the value; a multiplication repairs that for
  // subnormals too. Infinity and NaN get their exponent back. No branch, so that loops vectorise.
  const int32_t magnitude = value.bits & 0x7fff;
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t not_finite = magnitude > 0x7bff ? 0x7f800000u : 0u;
  return float_of(bits_of(float_of(static_cast<uint32_t>(magnitude) << 13) * 0x1p112f) | not_finite | sign);
}

/// Rounds to nearest, ties to even.
template <typename T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}

template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
inline Half from_float<Half>(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 leaves multiples of 2^-24 in the mantissa
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

/// Calls f with a value of the element type.
template <typename F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::fp32:
      return f(float{});
    case DType::fp16:
      return f(Half{});
    case DType::bf16:
      return f(BFloat16{});
  }
}

}  // namespace pipeinfer::kernels::cpu

// Element conversion on the host. Rounds to nearest even, keeps infinities and subnormals; a NaN stays a NaN.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pipeinfer/base/types.h"

namespace pipeinfer {

float half_to_float(uint16_t half);      ///< IEEE 754 binary16
uint16_t float_to_half(float value);     ///< beyond 65504 (after rounding): infinity
float bfloat_to_float(uint16_t bfloat);  ///< the upper half of a binary32
uint16_t float_to_bfloat(float value);

/// `to[i] = from[i]` for `count` elements; the ranges must not overlap. Unaligned `from` is fine.
void convert(const void* from, DType from_type, void* to, DType to_type, size_t count);

}  // namespace pipeinfer

// __half, by the CPU kernels' conversions.
#pragma once

#include "../../../src/kernels/cpu/element.h"

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};

inline float __half2float(__half value) {
  return pipeinfer::kernels::cpu::to_float(pipeinfer::kernels::cpu::Half{value.bits});
}
inline __half __float2half_rn(float value) {
  return {pipeinfer::kernels::cpu::from_float<pipeinfer::kernels::cpu::Half>(value).bits};
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }

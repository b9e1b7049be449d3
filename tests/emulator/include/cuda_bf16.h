// __nv_bfloat16, by the CPU kernels' conversions.
#pragma once

#include "../../../src/kernels/cpu/element.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  return pipeinfer::kernels::cpu::to_float(pipeinfer::kernels::cpu::BFloat16{value.bits});
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {pipeinfer::kernels::cpu::from_float<pipeinfer::kernels::cpu::BFloat16>(value).bits};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

// What the CPU and the GPU must do alike to choose alike: the order of candidates as integers, and their weights as
// integers too, so that sums do not depend on the order of addition.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "philox.h"
#include "pipeinfer/base/sampling.h"
#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::kernels {

/// A candidate as one number: the greater logit is greater, among equal logits the smaller id. NaN counts as the least
/// logit (-inf), -0 as +0. Bits 22 to 53 are the logit's, bits 0 to 21 are 2^22 - 1 - id.
inline constexpr int kIdBits = 22;
inline constexpr uint32_t kIdMask = (1u << kIdBits) - 1;
static_assert(kMaxVocab == 1 << kIdBits);

PI_HOST_DEVICE inline uint64_t candidate(float logit, int id) {
  uint32_t bits;
  if (!(logit > -INFINITY)) logit = -INFINITY;
  if (logit == 0) logit = 0;
  memcpy(&bits, &logit, sizeof bits);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{bits} << kIdBits | (kIdMask - static_cast<uint32_t>(id));
}

PI_HOST_DEVICE inline int candidate_id(uint64_t candidate) {
  return static_cast<int>(kIdMask - (static_cast<uint32_t>(candidate) & kIdMask));
}

PI_HOST_DEVICE inline float candidate_logit(uint64_t candidate) {
  uint32_t bits = static_cast<uint32_t>(candidate >> kIdBits);
  bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
  float logit;
  memcpy(&logit, &bits, sizeof logit);
  return logit;
}

/// The logit that a token is chosen by: penalty, then temperature.
PI_HOST_DEVICE inline float chosen_by(float logit, bool seen, const SamplingParams& params) {
  if (seen) logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  return params.temperature > 0 ? logit / params.temperature : logit;
}

/// exp(logit - max) in units of 2^-40: 2^22 candidates add up to 2^62 at most. Below that unit a token is never drawn.
PI_HOST_DEVICE inline uint64_t weight(float logit, float max) {
  if (logit == max) return uint64_t{1} << 40;
  return static_cast<uint64_t>(expf(logit - max) * 1099511627776.0f);
}

/// The least cumulated weight that reaches the share `p` of `total`, at least 1.
PI_HOST_DEVICE inline uint64_t share(float p, uint64_t total) {
  const double target = ceil(static_cast<double>(p) * static_cast<double>(total));
  if (!(target >= 1)) return 1;
  return target < static_cast<double>(total) ? static_cast<uint64_t>(target) : total;
}

/// floor(total * draw / 2^64), by 32-bit halves: less than `total`.
PI_HOST_DEVICE inline uint64_t scale_draw(uint64_t draw, uint64_t total) {
  const uint64_t dl = static_cast<uint32_t>(draw), dh = draw >> 32;
  const uint64_t tl = static_cast<uint32_t>(total), th = total >> 32;
  const uint64_t mid = dh * tl + (dl * tl >> 32);
  return dh * th + (mid >> 32) + ((dl * th + static_cast<uint32_t>(mid)) >> 32);
}

}  // namespace pipeinfer::kernels

// Frequencies of dynamic NTK scaling, alike on the CPU and the GPU: in double, then rounded once.
#pragma once

#include <cmath>

#include "philox.h"
#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::kernels {

/// The base for a token at `position` of a sequence with `prompt_tokens` (see Rope).
PI_HOST_DEVICE inline double dynamic_ntk_base(const Rope& rope, int prompt_tokens, int position,
                                              int head_dim) {
  int length = rope.max_position;
  if (prompt_tokens > length) length = prompt_tokens;
  if (position + 1 > length) length = position + 1;
  const double factor = rope.factor;
  const double stretch = factor * length / rope.max_position - (factor - 1);
  return rope.theta * pow(stretch, static_cast<double>(head_dim) / (head_dim - 2));
}

PI_HOST_DEVICE inline float rope_frequency(double base, int pair, int head_dim) {
  return static_cast<float>(pow(base, -2.0 * pair / head_dim));
}

}  // namespace pipeinfer::kernels

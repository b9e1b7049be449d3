// The angle of rotary embedding, for the kernels that rotate.
#pragma once

#include "../rope_math.h"
#include "common.cuh"

namespace pipeinfer::kernels::cuda {

/// Cosine (x) and sine (y) for pair `pair` of a token.
__device__ inline float2 rope_angle(const Rope& rope, const TokenTable& tokens, int slot, int position,
                                    int pair, int head_dim) {
  float frequency;
  if (rope.dynamic) {
    const double base = dynamic_ntk_base(rope, tokens.prompt_tokens[slot], position, head_dim);
    frequency = rope_frequency(base, pair, head_dim);
  } else {
    frequency = rope.inv_freq[pair];
  }
  float2 angle;
  sincosf(static_cast<float>(position) * frequency, &angle.y, &angle.x);
  return angle;
}

}  // namespace pipeinfer::kernels::cuda

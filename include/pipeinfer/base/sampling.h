// How the next token is chosen. Plain values: they travel in plans and are copied to the device.
#pragma once

#include <cstdint>

namespace pipeinfer {

/// Order of application, as in transformers: repetition penalty (Keskar et al. 2019, arXiv:1909.05858), then
/// temperature, then top-k, then top-p (Holtzman et al. 2019, arXiv:1904.09751), then one draw.
struct SamplingParams {
  float temperature = 0;  ///< 0: greedy (the smallest id among equal logits); otherwise logits / temperature
  int32_t top_k = 0;      ///< keep the k largest; 0: all
  float top_p = 1;        ///< keep the smallest set whose probability reaches p; 1: all
  float repetition_penalty = 1;  ///< seen tokens: logit > 0 is divided by it, else multiplied; 1: none
  uint64_t seed = 0;             ///< with id_hash and the token's position, the counter of the RNG
  uint64_t id_hash = 0;  ///< hash64 of the prompt's id: draws do not depend on batching, ranks or order
};

/// A candidate token of one position.
struct TopLogit {
  int32_t token;
  float logit;
};

/// Candidates kept a position where a reference is written.
inline constexpr int kTopLogits = 5;

}  // namespace pipeinfer

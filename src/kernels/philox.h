// Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): a counter-based generator,
// so that a draw depends on its key and counter only. One definition for the CPU and the GPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PI_HOST_DEVICE __host__ __device__
#else
#define PI_HOST_DEVICE
#endif

namespace pipeinfer::kernels {

struct Philox4 {
  uint32_t v[4];
};

PI_HOST_DEVICE inline Philox4 philox4x32_10(Philox4 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.v[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.v[2];
    counter = Philox4{
        {static_cast<uint32_t>(product1 >> 32) ^ counter.v[1] ^ key0, static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ counter.v[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/// 64 uniform bits of the token at `position` of the prompt with hash `id_hash`.
PI_HOST_DEVICE inline uint64_t draw64(uint64_t seed, uint64_t id_hash, uint32_t position) {
  const Philox4 counter{{static_cast<uint32_t>(id_hash), static_cast<uint32_t>(id_hash >> 32), position, 0}};
  const Philox4 bits = philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return uint64_t{bits.v[0]} << 32 | bits.v[1];
}

}  // namespace pipeinfer::kernels

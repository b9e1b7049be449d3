// Addresses in the paged KV cache, and its tokens.
#pragma once

#include "../ops.h"
#include "common.cuh"

namespace pipeinfer::kernels::cuda {

inline constexpr int kOctet = 8;  // positions that lie together, see KvLayer

/// The octet with K of a position of a block; V's is v_offset() elements further on.
template <typename T>
__device__ inline T* octet_in_block(const KvLayer& cache, int block, int position, int kv_head) {
  const int row_of_block = kv_head * cache.block_size + position / kOctet * kOctet;
  const int64_t row = int64_t{block} * (2 * cache.n_kv_heads * cache.block_size) + row_of_block;
  return static_cast<T*>(cache.data) + row * cache.head_dim;
}
/// The same of a position in a sequence with these blocks.
template <typename T>
__device__ inline T* key_octet(const KvLayer& cache, const int32_t* blocks, int position, int kv_head) {
  const unsigned block_size = cache.block_size;  // unsigned: a shorter division
  const unsigned index = position / block_size;
  return octet_in_block<T>(cache, blocks[index], position - static_cast<int>(index * block_size), kv_head);
}

/// Where an element of a position is in its octet. Its neighbours up to the next multiple of 8 dims follow.
__device__ inline int octet_offset(int head_dim, int position, int dim) {
  const int group = dim / 8 * 8;
  return group * kOctet + position % kOctet * min(8, head_dim - group) + dim - group;
}

__host__ __device__ inline int64_t v_offset(const KvLayer& cache) {
  return int64_t{cache.n_kv_heads} * cache.block_size * cache.head_dim;
}

__device__ inline const int32_t* blocks_of(const TokenTable& tokens, int slot) {
  return tokens.block_table + int64_t{slot} * tokens.max_blocks;
}

/// The two halves of paged_attention: tokens [0, n_single), each on its own, and tokens [n_single, n_tokens) in tiles.
void attend_single(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                   float scale, DType dtype, Stream& stream);
void attend_tiles(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                  float scale, DType dtype, Stream& stream);
/// The second on sm_90 (attention_prefill_groups.cu). False, and nothing is launched, where that is not for them.
bool attend_groups(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                   float scale, DType dtype, Stream& stream);

}  // namespace pipeinfer::kernels::cuda

// Attention of a step's tokens over what the cache holds: single tokens, then tiles of neighbours.
#include "kv.cuh"
namespace pipeinfer::kernels::cuda {
void paged_attention(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                     float scale, DType dtype, Stream& stream) {
  if (tokens.n_single > 0) attend_single(out, qkv, cache, tokens, n_heads, scale, dtype, stream);
  if (tokens.n_single < tokens.n_tokens) attend_tiles(out, qkv, cache, tokens, n_heads, scale, dtype, stream);
}
}  // namespace pipeinfer::kernels::cuda

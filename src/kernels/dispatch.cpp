// The public functions: the checks that hold for every back-end, then the one of the stream's device.
#include "ops.h"
#include "pipeinfer/base/check.h"

namespace pipeinfer::kernels {
namespace {

const Ops& ops(const Stream& stream) { return stream.device().is_cuda() ? cuda_ops() : cpu_ops(); }

void check_cache(const KvLayer& cache, int n_heads) {
  PI_CHECK(cache.head_dim > 0 && cache.head_dim % 2 == 0 && cache.head_dim <= kMaxHeadDim, "head_dim is ",
           cache.head_dim, ", must be even and at most ", kMaxHeadDim);
  PI_CHECK(cache.block_size > 0 && cache.block_size % 8 == 0, "block_size is ", cache.block_size,
           ", must be a multiple of 8");
  PI_CHECK(cache.n_kv_heads > 0 && n_heads % cache.n_kv_heads == 0, n_heads, " heads over ", cache.n_kv_heads,
           " kv heads");
}

}  // namespace

void embed(void* out, const void* table, const int32_t* token, const int32_t* slot, const int32_t* last_token,
           int n_tokens, int hidden, DType dtype, Stream& stream) {
  if (n_tokens > 0) ops(stream).embed(out, table, token, slot, last_token, n_tokens, hidden, dtype, stream);
}

void rms_norm(void* out, const void* x, const void* weight, const int32_t* row, int n_rows, int hidden,
              float eps, DType dtype, Stream& stream) {
  if (n_rows > 0) ops(stream).rms_norm(out, x, weight, row, n_rows, hidden, eps, dtype, stream);
}

void prepare_attention(float* angle, void* workspace, const KvLayer& cache, const TokenTable& tokens,
                       const Rope& rope, int n_heads, Stream& stream) {
  check_cache(cache, n_heads);
  if (tokens.n_tokens > 0)
    ops(stream).prepare_attention(angle, workspace, cache, tokens, rope, n_heads, stream);
}

void rope_and_cache(void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads, DType dtype,
                    Stream& stream) {
  check_cache(cache, n_heads);
  if (tokens.n_tokens > 0) ops(stream).rope_and_cache(qkv, cache, tokens, n_heads, dtype, stream);
}

void paged_attention(void* out, const void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                     float scale, DType dtype, Stream& stream) {
  check_cache(cache, n_heads);
  PI_CHECK(tokens.n_single >= 0 && tokens.n_single <= tokens.n_tokens, tokens.n_single, " of ",
           tokens.n_tokens);
  if (tokens.n_tokens > 0)
    ops(stream).paged_attention(out, qkv, cache, tokens, n_heads, scale, dtype, stream);
}

void decode_attention(void* out, void* qkv, const KvLayer& cache, const TokenTable& tokens, int n_heads,
                      float scale, void* workspace, DType dtype, Stream& stream) {
  check_cache(cache, n_heads);
  PI_CHECK(tokens.n_single >= 0 && tokens.n_single <= tokens.n_tokens, tokens.n_single, " of ",
           tokens.n_tokens);
  if (tokens.n_single > 0)
    ops(stream).decode_attention(out, qkv, cache, tokens, n_heads, scale, workspace, dtype, stream);
}

size_t decode_workspace_bytes(int n_heads, int n_kv_heads, int head_dim, Device device) {
  return device.is_cuda() ? cuda_ops().decode_workspace_bytes(n_heads, n_kv_heads, head_dim, device) : 0;
}

void silu_mul(void* out, const void* gate_up, int n_tokens, int intermediate, DType dtype, Stream& stream) {
  if (n_tokens > 0) ops(stream).silu_mul(out, gate_up, n_tokens, intermediate, dtype, stream);
}

void linear_cuda(void* out, const void* x, const void* weight, const void* bias, int n_rows, int n_out,
                 int n_in, DType dtype, Epilogue epilogue, Stream& stream) {
  PI_CHECK(stream.device().is_cuda(), "linear_cuda needs a CUDA stream");
  PI_CHECK(epilogue != Epilogue::silu_mul, "linear_cuda has no activation");
  if (n_rows > 0) ops(stream).linear_cuda(out, x, weight, bias, n_rows, n_out, n_in, dtype, epilogue, stream);
}

int fused_rows(int n_in, DType dtype, Device device) {
  if (!device.is_cuda() || dtype == DType::fp32 || n_in % 8 != 0) return 0;
  return cuda_ops().fused_rows(n_in, dtype, device);
}

int norm_parts(int n, int n_rows, DType dtype, Device device) {
  PI_CHECK(fused_rows(8, dtype, device) > 0, "a split norm of ", dtype_name(dtype));
  return cuda_ops().norm_parts(n, n_rows, dtype, device);
}

void split_norm(const void* x, const SplitNorm& norm, int n_rows, int n, DType dtype, Stream& stream) {
  PI_CHECK(fused_rows(8, dtype, stream.device()) > 0, "split_norm of ", dtype_name(dtype));
  PI_CHECK(norm.parts > 0 && norm.parts <= std::min(n, kNormParts), norm.parts, " parts of a norm of ", n);
  if (n_rows > 0) ops(stream).split_norm(x, norm, n_rows, n, dtype, stream);
}

void fused_linear(const FusedLinear& p, DType dtype, Stream& stream) {
  PI_CHECK(p.n_rows <= fused_rows(p.n_in, dtype, stream.device()), "fused_linear of ", p.n_rows, " rows of ",
           p.n_in, " elements of ", dtype_name(dtype));
  PI_CHECK(!p.row || p.epilogue == Epilogue::store_fp32,
           "fused_linear of picked rows, and not for their logits");
  if (p.n_rows > 0) ops(stream).fused_linear(p, dtype, stream);
}

void upload_tables(void* to, const void* from, size_t bytes, Stream& stream) {
  PI_CHECK(bytes % 16 == 0, "tables of ", bytes, " bytes");
  if (bytes > 0) ops(stream).upload_tables(to, from, bytes, stream);
}

void set_blocks(int32_t* block_table, const BlockEntry* entries, int n, int max_blocks, Stream& stream) {
  if (n > 0) ops(stream).set_blocks(block_table, entries, n, max_blocks, stream);
}

void open_slots(const SlotTable& slots, const SlotEntry* entries, int n, Stream& stream) {
  if (n > 0) ops(stream).open_slots(slots, entries, n, stream);
}

void mark_seen(const SlotTable& slots, const int32_t* slot, const int32_t* token, int n, Stream& stream) {
  if (n > 0 && slots.seen) ops(stream).mark_seen(slots, slot, token, n, stream);
}

void set_last_token(const SlotTable& slots, const int32_t* slot, const int32_t* sampled, int n,
                    Stream& stream) {
  if (n > 0) ops(stream).set_last_token(slots, slot, sampled, n, stream);
}

void sample(int32_t* out, const float* logits, const int32_t* slot, const int32_t* position,
            const SlotTable& slots, int n, int vocab, Stream& stream) {
  PI_CHECK(vocab > 0 && vocab <= kMaxVocab, "vocab is ", vocab, ", at most ", kMaxVocab);
  if (n > 0) ops(stream).sample(out, logits, slot, position, slots, n, vocab, stream);
}

void top_logits(TopLogit* out, const float* logits, int n, int vocab, Stream& stream) {
  PI_CHECK(vocab > 0, "vocab is ", vocab);
  if (n > 0) ops(stream).top_logits(out, logits, n, vocab, stream);
}

}  // namespace pipeinfer::kernels

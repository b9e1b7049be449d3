// The operations of a decoder step on raw pointers. Each call enqueues on its stream and runs the CUDA kernel or the
// CPU loop by the stream's device; `dtype` is that of activations, weights and KV cache, sums are fp32 throughout.
// Row-major; [a, b] are shapes; n_tokens counts all tokens of a step, each with a slot and a position.
#pragma once

#include <cstdint>

#include "pipeinfer/base/sampling.h"
#include "pipeinfer/base/types.h"
#include "pipeinfer/device/device.h"

namespace pipeinfer::kernels {

inline constexpr int kMaxHeadDim = 256;  ///< head_dim is even and at most this
inline constexpr int kMaxVocab = 1 << 22;

/// out[t] = table[token[t]], or table[last_token[slot[t]]] where token[t] is kFromSlot (-1).
void embed(void* out,                  // [n_tokens, hidden]
           const void* table,          // [vocab, hidden]
           const int32_t* token,       // [n_tokens]
           const int32_t* slot,        // [n_tokens]
           const int32_t* last_token,  // [slots]
           int n_tokens, int hidden, DType dtype, Stream& stream);

/// out = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, arXiv:1910.07467). `row` picks the rows (out[i] from
/// x[row[i]]); null: all in order.
void rms_norm(void* out,           // [n_rows, hidden]
              const void* x,       // [., hidden]
              const void* weight,  // [hidden]
              const int32_t* row,  // [n_rows] or null
              int n_rows, int hidden, float eps, DType dtype, Stream& stream);

/// Rotary embedding (Su et al. 2021, arXiv:2104.09864), halves layout of LlamaForCausalLM: pairs (i, i + head_dim/2).
/// The angle of pair i at position p is p * inv_freq[i]; with dynamic NTK scaling inv_freq depends on the length.
struct Rope {
  const float* inv_freq = nullptr;  // [head_dim / 2]; already scaled for linear and llama3
  bool dynamic = false;  // dynamic NTK: base = theta * (factor * L / max - (factor - 1))^(d / (d - 2))
  float theta = 10000;   //   for L = max(prompt_tokens[slot], p + 1, max); inv_freq is then not read
  float factor = 1;
  int32_t max_position = 0;
};

/// The paged KV cache of one layer: [blocks, 2 (K, V), kv_heads], each a head's block of block_size x head_dim elements:
///   on a CPU  [block_size, head_dim];
///   on a GPU  [block_size / 8] octets of 8 positions, in an octet one after the other the groups of 8 dims (the last may
///             be smaller), in a group [8, dims]. So what one matrix load of tensor cores takes is contiguous, and an octet
///             is a chunk of whole 16-byte words whatever head_dim is: copied as it is, unpadded, into shared memory.
struct KvLayer {
  void* data = nullptr;
  int block_size = 0;  // a multiple of 8
  int n_kv_heads = 0;
  int head_dim = 0;
};

/// What each token of a step is, on the device.
struct TokenTable {
  const int32_t* slot = nullptr;           // [n_tokens]
  const int32_t* position = nullptr;       // [n_tokens]
  const int32_t* block_table = nullptr;    // [slots, max_blocks]
  const int32_t* prompt_tokens = nullptr;  // [slots]
  const float* angle = nullptr;            // [n_tokens, head_dim / 2, 2], see prepare_attention
  int max_blocks = 0;
  int n_tokens = 0;
  int max_context = 0;  // host-side upper bound of position + 1 in this step
  int n_single = 0;   // leading tokens that are alone in their row: a GPU runs them by a kernel of their own,
                      //   the rest in tiles of neighbours; 0 is right too, but slow
  int n_padding = 0;  // the last of these, whose results nobody reads: attention may leave them out
  bool reference = false;  // a GPU runs the plain kernels, to compare with
};

/// What all layers of a step share: cosine and sine of every token's angles, and on a GPU how decode_attention deals its
/// work out. Enqueued before the step's first layer; launched plainly (see decode_attention).
void prepare_attention(float* angle,     // [n_tokens, head_dim / 2, 2]: what the layers find in tokens.angle
                       void* workspace,  // decode_attention's; null where none follows
                       const KvLayer& cache,  // of any layer: only its shape counts
                       const TokenTable& tokens, const Rope& rope, int n_heads, Stream& stream);

/// Rotates q in place inside qkv, and writes rotated k and v to the cache at each token's position.
void rope_and_cache(void* qkv,  // [n_tokens, (n_heads + 2 n_kv_heads) * head_dim]: q heads, k heads, v heads
                    const KvLayer& cache, const TokenTable& tokens, int n_heads, DType dtype, Stream& stream);

/// Causal attention of every token over its slot's cache, positions 0 to its own (Vaswani et al. 2017; paged as in
/// Kwon et al. 2023, arXiv:2309.06180; online softmax of Dao et al. 2022, arXiv:2205.14135). Grouped query heads:
/// query head h reads kv head h / (n_heads / n_kv_heads).
void paged_attention(void* out,        // [n_tokens, n_heads * head_dim]
                     const void* qkv,  // as left by rope_and_cache
                     const KvLayer& cache, const TokenTable& tokens, int n_heads, float scale, DType dtype,
                     Stream& stream);

/// rope_and_cache and paged_attention of the first n_single tokens, in one kernel where the GPU can. No two of them are
/// of one slot, but for padding (a slot and block whose contents nobody reads). What qkv holds afterwards is unspecified.
/// The launch depends on n_single and max_context alone: a graph may hold it while max_context bounds every replay. On a
/// GPU, what prepare_attention left for these tokens, their block tables and the cache's earlier positions are read before
/// the kernel before this one is complete: whoever wrote them must be complete when the step's first layer starts, so
/// something launched plainly (see launch.cuh), or the start of a graph, must lie between.
void decode_attention(void* out,  // [n_tokens, n_heads * head_dim]
                      void* qkv,  // as for rope_and_cache
                      const KvLayer& cache, const TokenTable& tokens, int n_heads, float scale,
                      void* workspace,  // decode_workspace_bytes, zeroed once; used by one stream at a time
                      DType dtype, Stream& stream);
/// 0 on the CPU.
size_t decode_workspace_bytes(int n_heads, int n_kv_heads, int head_dim, Device device);

/// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
void silu_mul(void* out,            // [n_tokens, intermediate]
              const void* gate_up,  // [n_tokens, 2 * intermediate]: gate, then up
              int n_tokens, int intermediate, DType dtype, Stream& stream);

/// What becomes of a product's sums, [n_rows, n_out] in fp32.
enum class Epilogue : uint8_t {
  store,       // out [n_rows, n_out] = sum, in dtype
  store_fp32,  // the same in fp32
  add,         // out [n_rows, n_out] += sum, rounded once
  silu_mul,    // out [n_rows, n_out / 2] = silu(sum of row i of weight) * sum of row n_out / 2 + i
};

/// sum = x * weight^T, rounded before `epilogue` (any but silu_mul) adds it, and again before a bias is added to that. CUDA
/// only (cuBLAS): on the CPU `model` calls ATen.
void linear_cuda(void* out,           // see Epilogue
                 const void* x,       // [n_rows, n_in]
                 const void* weight,  // [n_out, n_in]
                 const void* bias,    // [n_out] or null
                 int n_rows, int n_out, int n_in, DType dtype, Epilogue epilogue, Stream& stream);

inline constexpr int kFusedRows = 64;   ///< most rows of a fused product anywhere, see fused_rows
inline constexpr int kNormParts = 320;  ///< most parts of a split norm

/// An RMS norm (arXiv:1910.07467) between two fused products. Whoever writes x also writes x * weight, and the squares of
/// x summed in parts, one a block; whoever multiplies that applies the other factor, 1 / sqrt(mean square + eps), one a
/// row, to its sums. So neither waits for a kernel that does nothing else.
struct SplitNorm {
  const void* weight = nullptr;  // [n]; null: no norm
  float eps = 0;
  void* scaled = nullptr;    // [n_rows, n]: x * weight
  float* squares = nullptr;  // [n_rows, kNormParts], of which the first `parts` count
  int parts = 0;
};
void split_norm(const void* x,  // [n_rows, n]
                const SplitNorm& norm, int n_rows, int n, DType dtype, Stream& stream);

/// A product of few rows and what surrounds it in a decoder layer: sum = norm(x) * weight^T + bias.
struct FusedLinear {
  void* out = nullptr;
  const void* x = nullptr;       // [., n_in]; with a norm its `scaled`
  const int32_t* row = nullptr;  // [n_rows]: picks rows of x, with store_fp32 only; null: the first
  const void* weight = nullptr;  // [n_out, n_in]
  const void* bias = nullptr;    // [n_out] or null
  SplitNorm norm = {};           // of x
  SplitNorm next = {};           // of out, with Epilogue::add
  int n_rows = 0, n_out = 0, n_in = 0;
  Epilogue epilogue = Epilogue::store;
};

/// Most rows of fused products over n_in elements there: 0 but for 16-bit types on a GPU of compute capability 8.0 and up.
int fused_rows(int n_in, DType dtype, Device device);
/// SplitNorm::parts of a norm of n columns around fused products of n_rows rows.
int norm_parts(int n, int n_rows, DType dtype, Device device);
/// Reads the weight once at the memory's speed; all pointers are multiples of 16 bytes.
void fused_linear(const FusedLinear& linear, DType dtype, Stream& stream);

/// to = from, a step's tables; on a GPU from pinned memory, by a kernel: a stream waits longer for a copy engine. All are
/// multiples of 16 bytes.
void upload_tables(void* to, const void* from, size_t bytes, Stream& stream);

/// One entry of a block table that changes: block_table[slot * max_blocks + index] = block.
struct BlockEntry {
  int32_t slot, index, block;
};
void set_blocks(int32_t* block_table, const BlockEntry* entries, int n, int max_blocks, Stream& stream);

/// A slot that opens: its sampling parameters and prompt length, and its seen-token bitmap cleared.
struct SlotEntry {
  int32_t slot;
  int32_t prompt_tokens;
  SamplingParams sampling;
};
struct SlotTable {
  SamplingParams* sampling = nullptr;  // [slots] or null where the stage does not sample
  int32_t* prompt_tokens = nullptr;    // [slots] or null where none are kept
  uint32_t* seen = nullptr;            // [slots, seen_words]: bit t: token t was seen; null: none kept
  int32_t* last_token = nullptr;       // [slots]
  int seen_words = 0;                  // ceil(vocab / 32)
};
void open_slots(const SlotTable& slots, const SlotEntry* entries, int n, Stream& stream);

/// Marks token[t] as seen by slot[t]; entries with token kFromSlot are skipped (they were marked when sampled).
void mark_seen(const SlotTable& slots, const int32_t* slot, const int32_t* token, int n, Stream& stream);

/// last_token[slot[i]] = sampled[i] for i in order. Equal slots are neighbours, as in a plan.
void set_last_token(const SlotTable& slots, const int32_t* slot, const int32_t* sampled, int n,
                    Stream& stream);

/// Picks one token a row by its slot's parameters (see SamplingParams for the order), and marks it as seen. The draw is
/// u = uniform(seed, id_hash, position of the token that is sampled), from a counter-based generator (Philox 4x32-10,
/// Salmon et al. 2011), and the token is the first whose cumulated probability, in order of descending logit (ties:
/// ascending id), exceeds u: so CPU and GPU choose alike but for rounding. NaN counts as -inf. All rows see the slots'
/// seen tokens as they were before the call.
void sample(int32_t* out,             // [n]
            const float* logits,      // [n, vocab]
            const int32_t* slot,      // [n]
            const int32_t* position,  // [n]: of the logits' token; the sampled one is at position + 1
            const SlotTable& slots, int n, int vocab, Stream& stream);

/// The kTopLogits largest logits a row, descending (ties: ascending id; NaN is reported as -inf). Where the vocabulary
/// is smaller, the rest is {-1, -inf}.
void top_logits(TopLogit* out,        // [n, kTopLogits]
                const float* logits,  // [n, vocab]
                int n, int vocab, Stream& stream);

}  // namespace pipeinfer::kernels

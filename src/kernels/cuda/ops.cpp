#include "../ops.h"

namespace pipeinfer::kernels {

const Ops& cuda_ops() {
  static constexpr Ops ops{
      .embed = cuda::embed,
      .rms_norm = cuda::rms_norm,
      .prepare_attention = cuda::prepare_attention,
      .rope_and_cache = cuda::rope_and_cache,
      .paged_attention = cuda::paged_attention,
      .decode_attention = cuda::decode_attention,
      .decode_workspace_bytes = cuda::decode_workspace_bytes,
      .silu_mul = cuda::silu_mul,
      .linear_cuda = cuda::linear_cuda,
      .split_norm = cuda::split_norm,
      .fused_rows = cuda::fused_rows,
      .norm_parts = cuda::norm_parts,
      .fused_linear = cuda::fused_linear,
      .upload_tables = cuda::upload_tables,
      .set_blocks = cuda::set_blocks,
      .open_slots = cuda::open_slots,
      .mark_seen = cuda::mark_seen,
      .set_last_token = cuda::set_last_token,
      .sample = cuda::sample,
      .top_logits = cuda::top_logits,
  };
  return ops;
}

}  // namespace pipeinfer::kernels

#include "../ops.h"

namespace pipeinfer::kernels {

const Ops& cpu_ops() {
  static constexpr Ops ops{
      .embed = cpu::embed,
      .rms_norm = cpu::rms_norm,
      .prepare_attention = cpu::prepare_attention,
      .rope_and_cache = cpu::rope_and_cache,
      .paged_attention = cpu::paged_attention,
      .decode_attention = cpu::decode_attention,
      .decode_workspace_bytes = cpu::decode_workspace_bytes,
      .silu_mul = cpu::silu_mul,
      .linear_cuda = nullptr,  // these are refused by name before they get here
      .split_norm = nullptr,
      .fused_rows = nullptr,
      .norm_parts = nullptr,
      .fused_linear = nullptr,
      .upload_tables = cpu::upload_tables,
      .set_blocks = cpu::set_blocks,
      .open_slots = cpu::open_slots,
      .mark_seen = cpu::mark_seen,
      .set_last_token = cpu::set_last_token,
      .sample = cpu::sample,
      .top_logits = cpu::top_logits,
  };
  return ops;
}

}  // namespace pipeinfer::kernels

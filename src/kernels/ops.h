// The operations of kernels.h once a back-end: declared with the types of the public functions, found through a table.
#pragma once

#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::kernels {

struct Ops {
  decltype(&kernels::embed) embed;
  decltype(&kernels::rms_norm) rms_norm;
  decltype(&kernels::prepare_attention) prepare_attention;
  decltype(&kernels::rope_and_cache) rope_and_cache;
  decltype(&kernels::paged_attention) paged_attention;
  decltype(&kernels::decode_attention) decode_attention;
  decltype(&kernels::decode_workspace_bytes) decode_workspace_bytes;
  decltype(&kernels::silu_mul) silu_mul;
  decltype(&kernels::linear_cuda) linear_cuda;
  decltype(&kernels::split_norm) split_norm;
  decltype(&kernels::fused_rows) fused_rows;
  decltype(&kernels::norm_parts) norm_parts;
  decltype(&kernels::fused_linear) fused_linear;
  decltype(&kernels::upload_tables) upload_tables;
  decltype(&kernels::set_blocks) set_blocks;
  decltype(&kernels::open_slots) open_slots;
  decltype(&kernels::mark_seen) mark_seen;
  decltype(&kernels::set_last_token) set_last_token;
  decltype(&kernels::sample) sample;
  decltype(&kernels::top_logits) top_logits;
};

const Ops& cpu_ops();

/// Throws Error(usage) where CUDA is not built in.
const Ops& cuda_ops();

namespace cpu {
decltype(kernels::embed) embed;
decltype(kernels::rms_norm) rms_norm;
decltype(kernels::prepare_attention) prepare_attention;
decltype(kernels::rope_and_cache) rope_and_cache;
decltype(kernels::paged_attention) paged_attention;
decltype(kernels::decode_attention) decode_attention;
decltype(kernels::decode_workspace_bytes) decode_workspace_bytes;
decltype(kernels::silu_mul) silu_mul;
decltype(kernels::upload_tables) upload_tables;
decltype(kernels::set_blocks) set_blocks;
decltype(kernels::open_slots) open_slots;
decltype(kernels::mark_seen) mark_seen;
decltype(kernels::set_last_token) set_last_token;
decltype(kernels::sample) sample;
decltype(kernels::top_logits) top_logits;
}  // namespace cpu

namespace cuda {
decltype(kernels::embed) embed;
decltype(kernels::rms_norm) rms_norm;
decltype(kernels::prepare_attention) prepare_attention;
decltype(kernels::rope_and_cache) rope_and_cache;
decltype(kernels::paged_attention) paged_attention;
decltype(kernels::decode_attention) decode_attention;
decltype(kernels::decode_workspace_bytes) decode_workspace_bytes;
decltype(kernels::silu_mul) silu_mul;
decltype(kernels::linear_cuda) linear_cuda;
decltype(kernels::split_norm) split_norm;
decltype(kernels::fused_rows) fused_rows;
decltype(kernels::norm_parts) norm_parts;
decltype(kernels::fused_linear) fused_linear;
decltype(kernels::upload_tables) upload_tables;
decltype(kernels::set_blocks) set_blocks;
decltype(kernels::open_slots) open_slots;
decltype(kernels::mark_seen) mark_seen;
decltype(kernels::set_last_token) set_last_token;
decltype(kernels::sample) sample;
decltype(kernels::top_logits) top_logits;
}  // namespace cuda

/// read_limit_gbps and gemm_rate_tflops on a GPU.
double cuda_read_limit_gbps(Device device, size_t bytes);
double cuda_gemm_rate_tflops(Device device, DType dtype);

}  // namespace pipeinfer::kernels

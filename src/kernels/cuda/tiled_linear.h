// Fused products by tiles, where fused_linear.cu leaves the memory idle: see tiled_linear.cu.
#pragma once

#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::kernels::cuda {

/// Whether they run there: on GPUs of compute capability 9.0, where code for sm_90a is built in. Not where the environment
/// has PIPEINFER_UNTILED, with which tests run what older GPUs run.
bool has_tiled_linear(Device device);
/// The parts of a norm of n columns that they write.
int tiled_norm_parts(int n, int n_rows, DType dtype, Device device);
/// split_norm with these parts, to the last bit what they write: so a stage that begins with a layer computes the same as
/// one that has the layers before it.
void tiled_norm(const void* x, const SplitNorm& norm, int n_rows, int n, DType dtype, Stream& stream);
/// fused_linear of up to kFusedRows rows, without `row`; columns of out are a multiple of 4.
void tiled_linear(const FusedLinear& p, DType dtype, Stream& stream);

}  // namespace pipeinfer::kernels::cuda

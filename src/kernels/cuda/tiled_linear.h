// Fused products by tiles, where has_sm90a(): see tiled_linear.cu.
#pragma once

#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::kernels::cuda {

/// The parts of a norm of n columns that they write.
int tiled_norm_parts(int n, int n_rows, DType dtype, Device device);
/// split_norm with these parts, to the last bit what they write: so a stage that begins with a layer computes the same as
/// one that has the layers before it.
void tiled_norm(const void* x, const SplitNorm& norm, int n_rows, int n, DType dtype, Stream& stream);
/// fused_linear of up to kFusedRows rows, without `row`; columns of out are a multiple of 4.
void tiled_linear(const FusedLinear& p, DType dtype, Stream& stream);

}  // namespace pipeinfer::kernels::cuda

// What ATen computes on the CPU, on raw pointers.
#pragma once

#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::model {

/// sum = x * weight^T + bias; `epilogue` is any but silu_mul.
void linear_cpu(void* out,           // see kernels::Epilogue
                const void* x,       // [n_rows, n_in]
                const void* weight,  // [n_out, n_in]
                const void* bias,    // [n_out] or null
                int n_rows, int n_out, int n_in, DType dtype, kernels::Epilogue epilogue);

}  // namespace pipeinfer::model

// What ATen computes on the CPU, on raw pointers.
#pragma once

#include "pipeinfer/base/types.h"

namespace pipeinfer::model {

/// out = x * weight^T + bias. `out_dtype` is dtype or fp32.
void linear_cpu(void* out,           // [n_rows, n_out]
                const void* x,       // [n_rows, n_in]
                const void* weight,  // [n_out, n_in]
                const void* bias,    // [n_out] or null
                int n_rows, int n_out, int n_in, DType dtype, DType out_dtype);

}  // namespace pipeinfer::model

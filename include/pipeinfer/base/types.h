// Element types of tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pipeinfer {

enum class DType : uint8_t { fp32, fp16, bf16 };

/// Bytes of one element.
size_t dtype_size(DType dtype);

/// "fp32", "fp16" or "bf16".
const char* dtype_name(DType dtype);

}  // namespace pipeinfer

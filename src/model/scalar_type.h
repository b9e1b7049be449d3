// DType in LibTorch's terms.
#pragma once

#include <c10/core/ScalarType.h>

#include "pipeinfer/base/types.h"

namespace pipeinfer::model {

inline c10::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::fp16:
      return c10::ScalarType::Half;
    case DType::bf16:
      return c10::ScalarType::BFloat16;
    default:
      return c10::ScalarType::Float;
  }
}

}  // namespace pipeinfer::model

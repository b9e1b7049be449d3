#include "../model/harness.h"

namespace pipeinfer::test {

std::vector<Backend> backends() {
  const Device gpu{DeviceKind::cuda, 0};
  return {{"cuda_fp32", gpu, DType::fp32, 1e-5},
          {"cuda_fp16", gpu, DType::fp16, 2e-2},
          {"cuda_fp16_reference", gpu, DType::fp16, 2e-2, true}};
}

}  // namespace pipeinfer::test

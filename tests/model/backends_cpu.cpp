#include "harness.h"

namespace pipeinfer::test {

std::vector<Backend> backends() {
  return {{"cpu_fp32", {}, DType::fp32, 1e-5},
          {"cpu_fp16", {}, DType::fp16, 2e-2},
          {"cpu_bf16", {}, DType::bf16, 0.1}};
}

}  // namespace pipeinfer::test

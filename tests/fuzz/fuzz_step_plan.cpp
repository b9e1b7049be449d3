// StepPlan and StepResult on any bytes: an Error, or a plan that survives serialization. A plan
// that passes its check keeps within the limits.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "pipeinfer/base/error.h"
#include "pipeinfer/batch/step_plan.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

template <typename Call>
void allow_error(Call call) {
  try {
    call();
  } catch (const pipeinfer::Error& error) {
    require(error.what()[0] != '\0');
  }
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pipeinfer;
  const auto bytes = std::as_bytes(std::span(data, size));
  const PlanLimits limits = {.slots = 16,
                             .blocks = 64,
                             .block_size = 16,
                             .context = 256,
                             .vocab_size = 1000,
                             .lanes = 4,
                             .max_tokens = 128};
  allow_error([&] {
    const StepPlan plan = StepPlan::parse(bytes);
    const auto again = plan.serialize();
    require(again.size() == size && same(StepPlan::parse(again).serialize(), again));
    plan.check(limits);
    require(plan.lane >= 0 && plan.lane < limits.lanes && plan.n_tokens() <= limits.max_tokens);
    for (const StepRow& row : plan.rows) {
      require(row.slot >= 0 && row.slot < limits.slots);
      require(row.position >= 0 && row.n_tokens >= 1 && row.position + row.n_tokens <= limits.context);
      if (row.first_token != kFromSlot)
        require(row.first_token >= 0 &&
                row.first_token + row.n_tokens <= static_cast<int64_t>(plan.tokens.size()));
    }
  });
  allow_error([&] { require(same(StepResult::parse(bytes).serialize(), bytes)); });
  return 0;
}

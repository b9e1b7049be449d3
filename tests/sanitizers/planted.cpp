// Faults planted on purpose: each sanitizer must see its own, or its silence about the other tests says nothing.
// usage: planted race|overflow
#include <cstdio>
#include <string>
#include <vector>

#include "../pipeline/threads_run.h"

namespace pipeinfer::testing {
namespace {

/// A job of two ranks in which each rank's stage counts its steps in one plain integer.
int race() {
  int steps = 0;
  JobSetup setup;
  SchedulerConfig config;
  config.lanes = 4;
  config.batch_size = 4;
  config.blocks = 32;
  config.context = 128;
  setup.layout = make_layout(2, config);
  setup.max_delay_s = 1e-4;
  for (int i = 0; i < 16; ++i) {
    Request request;
    request.id = cat("r", i);
    request.prompt_tokens = {i, i + 1};
    request.max_new_tokens = 100;
    setup.requests.push_back(request);
  }
  setup.prepare = [&](int, FakeStage& stage, LocalWorld&) {
    stage.before_run = [&](const StepPlan&) { ++steps; };
  };
  run_job(setup);
  return steps;
}

int overflow(int size) {
  std::vector<int> values(size);
  const int* data = values.data();
  return data[size];
}

}  // namespace
}  // namespace pipeinfer::testing

int main(int count, char** arguments) {
  const std::string fault = count > 1 ? arguments[1] : "";
  const int value = fault == "race" ? pipeinfer::testing::race() : pipeinfer::testing::overflow(count);
  std::printf("%s: %d\n", fault.c_str(), value);
}

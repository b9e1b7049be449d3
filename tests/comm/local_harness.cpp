// The conformance tests' ranks as threads.
#include "harness.h"
#include "pipeinfer/comm/local.h"

namespace pipeinfer {

void on_every_rank(const std::function<void(Job&)>& body) {
  for (const LocalFaults& faults : {LocalFaults{}, LocalFaults{.max_delay_s = 0.002, .seed = 1}}) {
    LocalWorld world(3, faults);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < world.size(); rank++) {
      ranks.emplace_back([&, rank] { body(*world.job(rank)); });
    }
    for (auto& thread : ranks) thread.join();
  }
}

}  // namespace pipeinfer

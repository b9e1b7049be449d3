#include <unistd.h>

#include <array>
#include <map>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/comm/nccl.h"

namespace pipeinfer {

std::string gpu_identity(Device device) {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  return cat(host.data(), " ", device_info(device).pci_bus_id);
}

void refuse_shared_gpus(const std::vector<std::string>& identity_by_rank) {
  std::map<std::string, size_t> owner;
  for (size_t rank = 0; rank < identity_by_rank.size(); rank++) {
    const std::string& identity = identity_by_rank[rank];
    const auto [found, is_new] = owner.emplace(identity, rank);
    if (!is_new && !identity.empty()) {
      usage_error(cat("ranks ", found->second, " and ", rank, " share one GPU (", identity,
                      "), which NCCL does not allow: start fewer ranks a node, or use --transport mpi"));
    }
  }
}

}  // namespace pipeinfer

// The build without NCCL.
#include "pipeinfer/base/error.h"
#include "pipeinfer/comm/nccl.h"

namespace pipeinfer {

bool nccl_built() { return false; }

std::string nccl_version() { return ""; }

std::unique_ptr<Transport> make_nccl_transport(Device, Control&, double) {
  usage_error("transport nccl: this build has no NCCL (configure it with -DPIPEINFER_CUDA=ON)");
}

}  // namespace pipeinfer

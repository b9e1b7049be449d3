// The Transport over NCCL; no_nccl.cpp where the build has none.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pipeinfer/comm/control.h"
#include "pipeinfer/comm/transport.h"

namespace pipeinfer {

/// Whether this build has NCCL.
bool nccl_built();

/// "2.28.9", or "" without NCCL.
std::string nccl_version();

/// A communicator of two ranks for each link, non-blocking, and warmed up before connected() is true. The ranks agree
/// on it over `control` (Tag::unique_id: while links open, poll other tags by name), which outlives the transport.
/// A send or recv returns once it is on its stream, at the latest after `timeout_s`, then throwing Error(failed).
/// connected() refuses a link between two ranks on one GPU (see refuse_shared_gpus). Throws Error(usage) for a device
/// that is no GPU, or without NCCL.
std::unique_ptr<Transport> make_nccl_transport(Device device, Control& control, double timeout_s);

/// "<host> <PCI bus id>": the same for two ranks exactly where they share the GPU.
std::string gpu_identity(Device device);

/// Throws Error(usage) that names two ranks with the same identity, if there are any (NCCL hangs, or fails without
/// saying why). Ranks by index; those without a GPU have an empty identity.
void refuse_shared_gpus(const std::vector<std::string>& identity_by_rank);

}  // namespace pipeinfer

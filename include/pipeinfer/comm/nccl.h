// The Transport over NCCL; no_nccl.cpp where the build has none.
#pragma once

#include <memory>

#include "pipeinfer/comm/control.h"
#include "pipeinfer/comm/transport.h"

namespace pipeinfer {

/// Whether this build has NCCL.
bool nccl_built();

/// "2.28.9", or "" without NCCL.
std::string nccl_version();

/// A communicator of two ranks for each link, non-blocking and warmed up before connected() is true. The ranks agree
/// on it over `control` (Tag::unique_id), which outlives the transport. Two ranks of a link on one GPU are refused by
/// name: connected() throws Error(usage). Throws Error(usage) for a device that is no GPU, or without NCCL.
std::unique_ptr<Transport> make_nccl_transport(Device device, Control& control);

}  // namespace pipeinfer

// NVML, as far as it is used here, loaded at run time: nodes without a driver lack it, and its header is not part of
// every toolkit.
#pragma once

#include <string>

#include "pipeinfer/device/device.h"

namespace pipeinfer::cuda {

/// Use of the GPU at this PCI address; fields that NVML can't tell are -1.
DeviceUse nvml_device_use(const std::string& pci_bus_id);

}  // namespace pipeinfer::cuda

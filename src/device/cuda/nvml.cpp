#include "nvml.h"

#include <dlfcn.h>

#include <type_traits>

namespace pipeinfer::cuda {
namespace {

// Types and signatures from NVML's reference, "nvml.h" of the driver API (success is 0).
using NvmlDevice = void*;
struct NvmlUtilization {
  unsigned gpu, memory;
};
struct NvmlMemory {
  unsigned long long total, free, used;
};

/// The functions, or null where the library or one of them is missing.
struct Nvml {
  int (*init)() = nullptr;
  int (*handle_by_pci)(const char*, NvmlDevice*) = nullptr;
  int (*utilization)(NvmlDevice, NvmlUtilization*) = nullptr;
  int (*memory)(NvmlDevice, NvmlMemory*) = nullptr;
  bool usable = false;

  Nvml() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    const auto load = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    usable = load(init, "nvmlInit_v2") && load(handle_by_pci, "nvmlDeviceGetHandleByPciBusId_v2") &&
             load(utilization, "nvmlDeviceGetUtilizationRates") && load(memory, "nvmlDeviceGetMemoryInfo") &&
             init() == 0;
  }
};

}  // namespace

DeviceUse nvml_device_use(const std::string& pci_bus_id) {
  static const Nvml nvml;  // loaded once, stays loaded until the process ends
  DeviceUse use;
  NvmlDevice device = nullptr;
  if (!nvml.usable || nvml.handle_by_pci(pci_bus_id.c_str(), &device) != 0) return use;
  NvmlUtilization rates{};
  if (nvml.utilization(device, &rates) == 0) use.busy_percent = rates.gpu;
  NvmlMemory memory{};
  if (nvml.memory(device, &memory) == 0) use.used_bytes = static_cast<int64_t>(memory.used);
  return use;
}

}  // namespace pipeinfer::cuda

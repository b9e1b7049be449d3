// The CPU as a device: its figures from /proc, and its memory.
#pragma once

#include "pipeinfer/device/device.h"

namespace pipeinfer::cpu {

DeviceInfo device_info();
DeviceUse device_use();

/// 64-byte aligned. Throws Error(failed) as DeviceBuffer says.
void* alloc(size_t bytes, const std::string& what);
void free(void* data) noexcept;

}  // namespace pipeinfer::cpu

#include "cpu.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer::cpu {
namespace {

/// The value of the first line "key ... : value" or "key: value" of a /proc file; "" where there is none.
std::string proc_field(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.compare(0, key.size(), key) != 0 || colon == std::string::npos) continue;
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

int64_t meminfo_bytes(const char* key) {
  return std::strtoll(proc_field("/proc/meminfo", key).c_str(), nullptr, 10) * 1024;
}

/// User and system time of this process.
double process_cpu_s() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

int cores() { return std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace

DeviceInfo device_info() {
  DeviceInfo info;
  info.name = proc_field("/proc/cpuinfo", "model name");
  if (info.name.empty()) info.name = "CPU";
  info.total_bytes = meminfo_bytes("MemTotal");
  info.free_bytes = meminfo_bytes("MemAvailable");
  info.multiprocessors = cores();
  return info;
}

DeviceUse device_use() {
  struct Sample {
    double wall_s, cpu_s;
  };
  static thread_local Sample last{now_s(), process_cpu_s()};
  const Sample now{now_s(), process_cpu_s()};
  DeviceUse use;
  if (now.wall_s > last.wall_s) {
    use.busy_percent =
        std::clamp(100 * (now.cpu_s - last.cpu_s) / ((now.wall_s - last.wall_s) * cores()), 0.0, 100.0);
  }
  last = now;
  int64_t pages = 0, resident = 0;
  if (std::ifstream("/proc/self/statm") >> pages >> resident)
    use.used_bytes = resident * sysconf(_SC_PAGESIZE);
  return use;
}

void* alloc(size_t bytes, const std::string& what) {
  if (bytes == 0) return nullptr;
  constexpr size_t kAlign = 64;
  const DeviceInfo info = device_info();
  // More than the machine has can't end well, even where the kernel would promise it.
  const bool possible = info.total_bytes == 0 || bytes <= static_cast<size_t>(info.total_bytes);
  void* data = possible ? std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign) : nullptr;
  if (!data) {
    runtime_failure(cat("out of memory: ", what, " needs ", bytes, " bytes, the host has ", info.free_bytes,
                        " bytes free"));
  }
  return data;
}

void free(void* data) noexcept { std::free(data); }

}  // namespace pipeinfer::cpu

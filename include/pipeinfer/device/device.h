// A device (one GPU, or the CPU), its streams, events and memory. On the CPU everything enqueued has happened when
// the call returns. CUDA lives in src/device/cuda/, its absence in no_cuda.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace pipeinfer {

enum class DeviceKind : uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;  ///< CUDA ordinal among the visible devices
  bool is_cuda() const { return kind == DeviceKind::cuda; }
};

/// Number of CUDA devices visible to this process; 0 where there is none, no driver, or no CUDA in the build.
int cuda_device_count();

/// As 1000 x major + 10 x minor: CUDA's runtime in this build, and the newest that the driver serves. 0: there is none.
struct CudaVersions {
  int runtime = 0;
  int driver = 0;
};
CudaVersions cuda_versions();

/// Makes the device current for the calling thread (every thread that enqueues must). Throws Error(usage) where it
/// does not exist.
void use_device(Device device);

struct DeviceInfo {
  std::string name;         ///< "NVIDIA H200", or the CPU's model name
  std::string pci_bus_id;   ///< "" on the CPU
  int64_t total_bytes = 0;  ///< memory
  int64_t free_bytes = 0;
  int compute_major = 0, compute_minor = 0;  ///< 0 on the CPU
  int multiprocessors = 0;                   ///< cores on the CPU
};
DeviceInfo device_info(Device device);

/// Use of the device now: NVML on a GPU (fields are -1 where NVML is missing), /proc on the CPU.
struct DeviceUse {
  double busy_percent = -1;  ///< of the device (GPU) or of the process over all its cores (CPU), since this
                             ///< thread's last call
  int64_t used_bytes = -1;   ///< GPU: device memory in use; CPU: resident set of the process
};
DeviceUse device_use(Device device);

/// Enqueues in order; owned, movable.
class Stream {
 public:
  explicit Stream(Device device);
  ~Stream();
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  Device device() const { return device_; }
  void* native() const { return native_; }  ///< cudaStream_t; null on the CPU

 private:
  Device device_;
  void* native_ = nullptr;
};

/// A point in a stream. Records time.
class Event {
 public:
  explicit Event(Device device);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;

  void record(Stream& stream);
  /// Whether everything before the last record has happened (true if never recorded). Throws Error(failed) with the
  /// CUDA error that a kernel left behind.
  bool ready() const;
  /// Work enqueued on `stream` from now on waits for the last record.
  void block(Stream& stream) const;
  /// When a ready event happened, in seconds of now_s()'s clock (GPU: to within some microseconds).
  double time_s() const;

 private:
  Device device_;
  void* native_ = nullptr;
  double cpu_time_s_ = 0;
};

/// Polls until `event` is ready, at most `timeout_s`. False when the time is over. Sleeps between polls only after
/// the first 200 microseconds.
bool wait_until(const Event& event, double timeout_s);

/// Device memory, uninitialised. Throws Error(failed) that names `what`, the bytes asked for and the bytes free.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Device device, size_t bytes, const std::string& what);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  Device device_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Host memory that the device copies from and to without staging (plain memory on the CPU).
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(Device device, size_t bytes, const std::string& what);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  Device device_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Enqueues a copy between any two of: this device's memory, pinned memory, host memory (then it may block).
void copy_async(void* to, const void* from, size_t bytes, Stream& stream);

/// Enqueues filling with a byte.
void fill_async(void* to, int byte, size_t bytes, Stream& stream);

}  // namespace pipeinfer

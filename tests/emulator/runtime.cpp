// The functions of src/device/cuda_api.h. Streams are lazy: what is enqueued happens when somebody waits for it or, at
// random, earlier; so a buffer that is used again too soon, or an event that nobody waits for, shows as a wrong result.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "../../src/device/cuda_api.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/device/cuda_check.h"

using Work = std::vector<std::function<void()>>;

struct CUstream_st {
  std::deque<std::function<void()>> waiting;
  uint64_t done = 0;
  Work* capture = nullptr;

  uint64_t enqueued() const { return done + waiting.size(); }
  /// Until `count` of all that was ever enqueued are done.
  void finish(uint64_t count) {
    while (done < count) {
      const auto next = std::move(waiting.front());
      waiting.pop_front();
      ++done;
      next();
    }
  }
};

namespace pipeinfer {

void check_cuda(cudaError_t status, const char* doing) {
  if (status != cudaSuccess) runtime_failure(cat("CUDA: ", doing, ": error ", static_cast<int>(status)));
}

namespace cuda {
namespace {

constexpr int64_t kMemoryBytes = int64_t{8} << 30;
constexpr size_t kPoisonBytes = 4 << 20;  // of an allocation: the whole of a large one would be costly

std::mt19937 rng{std::random_device{}()};
std::deque<CUstream_st> streams;            // their places stay: an event may outlive its stream
std::map<const char*, size_t> allocations;  // device and pinned memory

struct RecordedEvent {
  CUstream_st* stream = nullptr;
  uint64_t count = 0;  // of the stream's work before it
  double time_s = 0;
};

CUstream_st* stream_of(void* stream) { return static_cast<CUstream_st*>(stream); }
RecordedEvent* event_of(void* event) { return static_cast<RecordedEvent*>(event); }

void refuse_under_capture(const char* doing) {
  for (const CUstream_st& stream : streams) {
    if (stream.capture) emulator::fail(cat(doing, " while a graph is captured"));
  }
}

void finish_all() {
  for (CUstream_st& stream : streams) stream.finish(stream.enqueued());
}

void* allocate(size_t bytes) {
  refuse_under_capture("memory is allocated");
  if (bytes == 0) return nullptr;
  void* data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(data, 0xff, std::min(bytes, kPoisonBytes));
  allocations[static_cast<const char*>(data)] = bytes;
  return data;
}

/// After all work, as CUDA does.
void free_memory(void* data) {
  if (!data) return;
  finish_all();
  allocations.erase(static_cast<const char*>(data));
  std::free(data);
}

/// Whether [data, data + bytes) is memory that a GPU reaches; all of it is, or nothing.
bool is_reachable(const void* data, size_t bytes) {
  const char* begin = static_cast<const char*>(data);
  auto after = allocations.upper_bound(begin);
  if (after == allocations.begin()) return false;
  const auto& [start, size] = *--after;
  if (begin >= start + size) return false;
  if (begin + bytes > start + size) emulator::fail("a copy beyond the end of an allocation");
  return true;
}

}  // namespace

int device_count() { return 1; }
CudaVersions versions() { return {}; }
void set_device(int index) {
  if (index != 0) usage_error(cat("CUDA device ", index, " was asked for, but the emulator has one"));
}
DeviceInfo device_info(int) {
  return {.name = "emulator",
          .pci_bus_id = "none",
          .total_bytes = kMemoryBytes,
          .free_bytes = kMemoryBytes,
          .compute_major = 9,
          .compute_minor = 0,
          .multiprocessors = emulator::kMultiprocessors};
}
DeviceUse device_use(int) { return {}; }

void* stream_create(int) { return &streams.emplace_back(); }
void stream_destroy(void* stream) noexcept { stream_of(stream)->finish(stream_of(stream)->enqueued()); }

void* event_create(int) { return new RecordedEvent; }
void event_destroy(void* event) noexcept {
  if (event_of(event)->stream) event_ready(event);
  delete event_of(event);
}
void event_record(void* event, void* stream) {
  refuse_under_capture("an event is recorded");
  event_of(event)->stream = stream_of(stream);
  emulator::enqueue(stream_of(stream), [event] { event_of(event)->time_s = now_s(); });
  event_of(event)->count = stream_of(stream)->enqueued();
}
bool event_ready(void* event) {
  RecordedEvent& recorded = *event_of(event);
  if (recorded.stream) recorded.stream->finish(recorded.count);
  return true;
}
void event_block(void* event, void* stream) {
  refuse_under_capture("an event is waited for");
  emulator::enqueue(stream_of(stream), [recorded = *event_of(event)] {
    if (recorded.stream) recorded.stream->finish(recorded.count);
  });
}
double event_time_s(void* event, int) { return event_of(event)->time_s; }

void* device_alloc(int, size_t bytes, const std::string& what) {
  if (bytes > static_cast<size_t>(kMemoryBytes)) runtime_failure(cat("out of memory: ", what));
  return allocate(bytes);
}
void device_free(void* data) noexcept { free_memory(data); }
void* pinned_alloc(int, size_t bytes, const std::string&) { return allocate(bytes); }
void pinned_free(void* data) noexcept { free_memory(data); }

void* graph_capture(void* stream, const std::function<void()>& enqueue) {
  auto graph = std::make_unique<std::shared_ptr<Work>>(std::make_shared<Work>());
  stream_of(stream)->capture = graph->get();
  try {
    enqueue();
  } catch (...) {
    stream_of(stream)->capture = nullptr;
    throw;
  }
  stream_of(stream)->capture = nullptr;
  return graph.release();
}
void graph_launch(void* graph, void* stream) {
  emulator::enqueue(stream_of(stream), [work = *static_cast<std::shared_ptr<Work>*>(graph)] {
    for (const auto& f : *work) f();
  });
}
void graph_destroy(void* graph) noexcept { delete static_cast<std::shared_ptr<Work>*>(graph); }

void copy_async(void* to, const void* from, size_t bytes, void* stream) {
  const bool reads = is_reachable(from, bytes), writes = is_reachable(to, bytes);
  if (reads && writes) return emulator::enqueue(stream_of(stream), [=] { std::memcpy(to, from, bytes); });
  refuse_under_capture("host memory that is not pinned is copied");
  if (writes) {  // CUDA copies the source before it returns, not necessarily to its destination
    const char* begin = static_cast<const char*>(from);
    return emulator::enqueue(stream_of(stream), [to, staged = std::vector<char>(begin, begin + bytes)] {
      std::memcpy(to, staged.data(), staged.size());
    });
  }
  stream_of(stream)->finish(stream_of(stream)->enqueued());
  std::memcpy(to, from, bytes);
}
void fill_async(void* to, int byte, size_t bytes, void* stream) {
  if (!is_reachable(to, bytes)) emulator::fail("host memory is filled by a GPU");
  emulator::enqueue(stream_of(stream), [=] { std::memset(to, byte, bytes); });
}

}  // namespace cuda
}  // namespace pipeinfer

void emulator::enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream->capture) return stream->capture->push_back(std::move(work));
  stream->waiting.push_back(std::move(work));
  const uint64_t some =
      pipeinfer::cuda::rng() % 2 == 0 ? 0 : pipeinfer::cuda::rng() % (stream->waiting.size() + 1);
  stream->finish(stream->done + some);
}

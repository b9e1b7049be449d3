#include "weights.h"

#include <algorithm>
#include <random>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/hash.h"
#include "pipeinfer/checkpoint/convert.h"

namespace pipeinfer::model {

namespace {

constexpr size_t kStagingBytes = 32 << 20;
constexpr size_t kRandomPool = (1 << 20) + 1021;  // elements; odd, so that no two rows of a matrix are alike
constexpr double kCopyTimeoutS = 300;

int64_t elements(const WeightSlice& slice) {
  int64_t n = 1;
  for (int64_t size : slice.shape) n *= size;
  return n;
}

void wait_for(const Event& copied) {
  if (!wait_until(copied, kCopyTimeoutS))
    runtime_failure(cat("copying weights to the device is not done after ", kCopyTimeoutS, " s"));
}

// Two pinned buffers in turn: one is filled from the file while the other is on its way to the device.
class Uploader {
 public:
  Uploader(Device device, Stream& stream) : stream_(stream) {
    for (int i = 0; i < 2; ++i) {
      buffers_.emplace_back(device, kStagingBytes, "staging of weights");
      sent_.emplace_back(device);
    }
  }

  void* next() {
    turn_ ^= 1;
    wait_for(sent_[turn_]);
    return buffers_[turn_].data();
  }

  void send(void* to, size_t bytes) {
    copy_async(to, buffers_[turn_].data(), bytes, stream_);
    sent_[turn_].record(stream_);
  }

 private:
  Stream& stream_;
  std::vector<PinnedBuffer> buffers_;
  std::vector<Event> sent_;
  int turn_ = 0;
};

void upload(const WeightSlice& slice, const Checkpoint& checkpoint, DType dtype, Uploader& uploader) {
  const int64_t most = kStagingBytes / dtype_size(dtype);
  const int64_t n = elements(slice);
  for (int64_t first = 0; first < n; first += most) {
    const int64_t count = std::min(most, n - first);
    checkpoint.read(slice.name, first, count, dtype, uploader.next());
    uploader.send(static_cast<char*>(slice.data) + first * dtype_size(dtype), count * dtype_size(dtype));
  }
}

}  // namespace

void finish_copies(Stream& stream) {
  Event copied(stream.device());
  copied.record(stream);
  wait_for(copied);
}

void load_weights(const std::vector<WeightSlice>& slices, const Checkpoint& checkpoint, DType dtype,
                  Device device) {
  for (const WeightSlice& slice : slices) checkpoint.require(slice.name, slice.shape);
  if (!device.is_cuda()) {
    for (const WeightSlice& slice : slices) checkpoint.read(slice.name, dtype, slice.data);
    return;
  }
  Stream stream(device);
  Uploader uploader(device, stream);
  for (const WeightSlice& slice : slices) upload(slice, checkpoint, dtype, uploader);
  finish_copies(stream);
}

void randomize_weights(const std::vector<WeightSlice>& slices, uint64_t seed, DType dtype, Device device) {
  Stream stream(device);
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> values(kRandomPool);
  for (float& value : values) value = normal(engine);
  const std::vector<float> ones(1 << 16, 1.0f);
  PinnedBuffer pool(device, kRandomPool * dtype_size(dtype), "random weights");
  PinnedBuffer one(device, ones.size() * dtype_size(dtype), "random weights");
  convert(values.data(), DType::fp32, pool.data(), dtype, values.size());
  convert(ones.data(), DType::fp32, one.data(), dtype, ones.size());

  for (const WeightSlice& slice : slices) {
    const size_t n = elements(slice);
    char* to = static_cast<char*>(slice.data);
    if (slice.name.ends_with("norm.weight")) {
      PI_CHECK(n <= ones.size(), slice.name, " has ", n, " elements");
      copy_async(to, one.data(), n * dtype_size(dtype), stream);
      continue;
    }
    size_t from = hash64(slice.name, seed) % kRandomPool;
    for (size_t done = 0; done < n; from = 0) {
      const size_t count = std::min(n - done, kRandomPool - from);
      copy_async(to + done * dtype_size(dtype), pool.as<char>() + from * dtype_size(dtype),
                 count * dtype_size(dtype), stream);
      done += count;
    }
  }
  finish_copies(stream);
}

}  // namespace pipeinfer::model

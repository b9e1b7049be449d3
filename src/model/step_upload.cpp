#include "step_upload.h"

#include <algorithm>
#include <cstring>

#include "pipeinfer/base/error.h"
#include "pipeinfer/kernels/kernels.h"

namespace pipeinfer::model {

namespace {

constexpr size_t kMostPadding = 10 * 16;  // of a step's tables, see LlamaStage
constexpr double kRingTimeoutS = 600;  // peers are watched elsewhere: this only keeps a bug from being silent

}  // namespace

size_t table_bytes(const StageOptions& options) {
  const size_t slots = options.slots, tokens = options.max_tokens;
  const size_t grants = std::min<size_t>(options.blocks, slots * options.max_blocks());
  return slots * sizeof(kernels::SlotEntry) + grants * sizeof(kernels::BlockEntry) +
         (6 * tokens + 2 * options.max_graph_rows()) * sizeof(int32_t) + kMostPadding;
}

StepUpload::StepUpload(const StageOptions& options, Device device, void* device_memory)
    : device_(static_cast<char*>(device_memory)), capacity_(table_bytes(options)) {
  for (int i = 0; i < options.steps_in_flight; ++i) {
    ring_.emplace_back(device, capacity_, "tables of a step");
    sent_.emplace_back(device);
  }
}

void StepUpload::begin() {
  turn_ = (turn_ + 1) % ring_.size();
  used_ = 0;
  if (!wait_until(sent_[turn_], kRingTimeoutS))
    runtime_failure(cat("the device has not run a step that was enqueued ", ring_.size(), " steps and ",
                        kRingTimeoutS, " s ago"));
}

const void* StepUpload::put(const void* values, size_t bytes) {
  const size_t begin = used_;
  used_ += padded(bytes);
  PI_CHECK(used_ <= capacity_, "a step's tables need ", used_, " bytes, ", capacity_, " were planned");
  if (bytes) std::memcpy(ring_[turn_].as<char>() + begin, values, bytes);
  return device_ + begin;
}

void StepUpload::send(Stream& stream) {
  kernels::upload_tables(device_, ring_[turn_].data(), used_, stream);
  sent_[turn_].record(stream);
}

}  // namespace pipeinfer::model

// Named parts of the host's time, for a profiler.
#pragma once

namespace pipeinfer {

/// An NVTX range of the calling thread (Nsight Systems shows it, and what was launched in it) for as long as
/// it lives. Nothing in builds without CUDA.
class Range {
 public:
  explicit Range(const char* name);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace pipeinfer

// A CUDA graph: work that was captured once and is launched again as one.
#pragma once

#include <functional>

#include "pipeinfer/device/device.h"

namespace pipeinfer {

/// Owned, movable; empty until made. Needs a GPU.
class Graph {
 public:
  Graph() = default;
  /// Captures what `enqueue` puts on `stream` (nothing runs): no allocation, no wait, no other stream. Throws
  /// Error(failed) with what CUDA refused.
  Graph(Stream& stream, const std::function<void()>& enqueue);
  ~Graph();
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;

  explicit operator bool() const { return native_ != nullptr; }
  void launch(Stream& stream) const;

 private:
  void* native_ = nullptr;  // cudaGraphExec_t
};

}  // namespace pipeinfer

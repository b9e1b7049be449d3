#include "pipeinfer/device/graph.h"

#include <utility>

#include "cuda_api.h"

namespace pipeinfer {

Graph::Graph(Stream& stream, const std::function<void()>& enqueue)
    : native_(cuda::graph_capture(stream.native(), enqueue)) {}

Graph::~Graph() {
  if (native_) cuda::graph_destroy(native_);
}

Graph::Graph(Graph&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(native_, other.native_);
  return *this;
}

void Graph::launch(Stream& stream) const { cuda::graph_launch(native_, stream.native()); }

}  // namespace pipeinfer

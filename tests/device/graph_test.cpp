// Only on GPUs.
#include "pipeinfer/device/graph.h"

#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>
#include <utility>

#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

class GraphTest : public ::testing::Test {
 protected:
  static constexpr Device kGpu{DeviceKind::cuda, 0};
  static constexpr size_t kBytes = 1000;

  GraphTest() : stream_((use_device(kGpu), kGpu)), a_(kGpu, kBytes, "a"), b_(kGpu, kBytes, "b") {}

  // a -> b, then a is filled with 7.
  Graph captured() {
    return Graph(stream_, [&] {
      copy_async(b_.data(), a_.data(), kBytes, stream_);
      fill_async(a_.data(), 7, kBytes, stream_);
    });
  }

  char first_of(const DeviceBuffer& buffer) {
    PinnedBuffer host(kGpu, kBytes, "host");
    copy_async(host.data(), buffer.data(), kBytes, stream_);
    Event done(kGpu);
    done.record(stream_);
    EXPECT_TRUE(wait_until(done, 10));
    return host.as<char>()[0];
  }

  Stream stream_;
  DeviceBuffer a_, b_;
};

TEST_F(GraphTest, RunsWhenLaunchedAndAgain) {
  fill_async(a_.data(), 1, kBytes, stream_);
  fill_async(b_.data(), 2, kBytes, stream_);
  const Graph graph = captured();
  EXPECT_TRUE(graph);
  EXPECT_EQ(first_of(b_), 2) << "capturing ran it";
  graph.launch(stream_);
  EXPECT_EQ(first_of(b_), 1);
  graph.launch(stream_);
  EXPECT_EQ(first_of(b_), 7);
}

TEST_F(GraphTest, Moves) {
  fill_async(a_.data(), 1, kBytes, stream_);
  Graph graph, other = captured();
  EXPECT_FALSE(graph);
  graph = std::move(other);
  const Graph last = std::move(graph);
  last.launch(stream_);
  EXPECT_EQ(first_of(b_), 1);
}

TEST_F(GraphTest, AFailedCaptureLeavesTheStreamUsable) {
  EXPECT_THROW(Graph(stream_, [] { throw std::runtime_error("no"); }), std::runtime_error);
  fill_async(a_.data(), 3, kBytes, stream_);
  EXPECT_EQ(first_of(a_), 3);
}

}  // namespace
}  // namespace pipeinfer

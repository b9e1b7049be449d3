// The same cases run on the CPU (test_device) and on a GPU (test_device_gpu).
#include "pipeinfer/device/device.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

constexpr Device kDevice{DeviceKind::TEST_DEVICE, 0};

std::string message_of(auto&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Device, InfoNamesTheDeviceAndItsMemory) {
  const DeviceInfo info = device_info(kDevice);
  EXPECT_FALSE(info.name.empty());
  EXPECT_GT(info.free_bytes, 0);
  EXPECT_LE(info.free_bytes, info.total_bytes);
  EXPECT_GT(info.multiprocessors, 0);
  EXPECT_EQ(info.compute_major > 0, kDevice.is_cuda());
  EXPECT_EQ(info.pci_bus_id.empty(), !kDevice.is_cuda());
}

TEST(Device, UseIsWithinBounds) {
  device_use(kDevice);
  const double until = now_s() + 0.05;
  while (now_s() < until) {
  }
  const DeviceUse use = device_use(kDevice);
  EXPECT_LE(use.busy_percent, 100);
  if (!kDevice.is_cuda()) {
    EXPECT_GT(use.busy_percent, 0);  // this thread just spun
    EXPECT_GT(use.used_bytes, 1 << 20);
  }
  EXPECT_LE(use.used_bytes, device_info(kDevice).total_bytes);
}

TEST(Device, AMissingDeviceIsAUsageError) {
  const Device missing{DeviceKind::cuda, 99};
  try {
    use_device(missing);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("CUDA"), std::string::npos) << error.what();
  }
}

TEST(Buffer, BytesTravelThroughTheDevice) {
  use_device(kDevice);
  Stream stream(kDevice);
  const size_t n = 1000003;
  PinnedBuffer from(kDevice, n, "source"), to(kDevice, n, "target");
  DeviceBuffer a(kDevice, n, "a"), b(kDevice, n, "b");
  for (size_t i = 0; i < n; ++i) from.as<uint8_t>()[i] = static_cast<uint8_t>(i * 31 + i / 256);
  std::memset(to.data(), 0, n);
  copy_async(a.data(), from.data(), n, stream);
  fill_async(b.data(), 0x5a, n, stream);
  copy_async(b.data(), a.data(), n - 3, stream);
  copy_async(to.data(), b.data(), n, stream);
  copy_async(to.data(), a.data(), 0, stream);
  Event done(kDevice);
  done.record(stream);
  ASSERT_TRUE(wait_until(done, 10));
  EXPECT_EQ(std::memcmp(to.data(), from.data(), n - 3), 0);
  for (size_t i = n - 3; i < n; ++i) EXPECT_EQ(to.as<uint8_t>()[i], 0x5a);
}

TEST(Buffer, MovesHandOverTheMemory) {
  DeviceBuffer a(kDevice, 64, "a");
  void* data = a.data();
  DeviceBuffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(a.bytes(), 0u);
  DeviceBuffer c;
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c.bytes(), 64u);
  PinnedBuffer d(kDevice, 64, "d"), e;
  data = d.data();
  e = std::move(d);
  EXPECT_EQ(e.data(), data);
  EXPECT_EQ(DeviceBuffer(kDevice, 0, "none").data(), nullptr);
}

TEST(Buffer, OutOfMemorySaysWhatAndHowMuch) {
  const size_t bytes = size_t{1} << 50;
  const std::string device = message_of([&] { DeviceBuffer(kDevice, bytes, "KV cache of layer 3"); });
  EXPECT_NE(device.find("out of memory: KV cache of layer 3 needs 1125899906842624 bytes"), std::string::npos)
      << device;
  EXPECT_NE(device.find("bytes free"), std::string::npos) << device;
  const std::string pinned = message_of([&] { PinnedBuffer(kDevice, bytes, "staging"); });
  EXPECT_NE(pinned.find("staging needs 1125899906842624 bytes"), std::string::npos) << pinned;
  DeviceBuffer still_works(kDevice, 1 << 20, "after a failure");
  EXPECT_NE(still_works.data(), nullptr);
}

TEST(Event, IsReadyBeforeItIsRecordedAndAfterItHappened) {
  use_device(kDevice);
  Stream stream(kDevice), other(kDevice);
  Event event(kDevice);
  EXPECT_TRUE(event.ready());
  event.record(stream);
  event.block(other);
  Event last(kDevice);
  last.record(other);
  EXPECT_TRUE(wait_until(last, 10));
  EXPECT_TRUE(event.ready());
}

TEST(Event, TimeIsOnTheHostClock) {
  use_device(kDevice);
  Stream stream(kDevice);
  Event event(kDevice);
  double last = 0;
  for (int i = 0; i < 5; ++i) {
    const double before = now_s();
    event.record(stream);
    ASSERT_TRUE(wait_until(event, 10));
    const double after = now_s();
    const double time = event.time_s();
    EXPECT_GE(time, before - 50e-6);
    EXPECT_LE(time, after + 50e-6);
    EXPECT_GT(time, last);
    last = time;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST(Event, ThreadsUseTheirOwnStreams) {
  std::vector<std::thread> threads;
  std::vector<int> right(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      use_device(kDevice);
      Stream stream(kDevice);
      DeviceBuffer buffer(kDevice, 4096, "buffer");
      PinnedBuffer host(kDevice, 4096, "host");
      Event event(kDevice);
      for (int i = 0; i < 100; ++i) {
        fill_async(buffer.data(), t + i, 4096, stream);
        copy_async(host.data(), buffer.data(), 4096, stream);
        event.record(stream);
        if (!wait_until(event, 10) || event.time_s() <= 0) return;
        right[t] += host.as<uint8_t>()[4095] == static_cast<uint8_t>(t + i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int count : right) EXPECT_EQ(count, 100);
}

}  // namespace
}  // namespace pipeinfer

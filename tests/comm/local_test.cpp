// What only threads as ranks can show: injected faults.
#include <gtest/gtest.h>

#include "harness.h"
#include "pipeinfer/comm/local.h"

namespace pipeinfer {
namespace {

TEST(LocalWorld, ASilentRankIsHeardNoMore) {
  LocalWorld world(2);
  Control &zero = world.control(0), &one = world.control(1);
  one.show_life(Phase::serving, 5);
  EXPECT_EQ(zero.life(1).silent_s, 0);
  one.send(0, Tag::hello, {});
  world.silence(1);
  one.send(0, Tag::result, {});
  one.show_life(Phase::finishing, 6);
  EXPECT_TRUE(zero.poll(Tag::hello));
  EXPECT_FALSE(zero.poll());
  EXPECT_TRUE(eventually([&] { return zero.life(1).silent_s > 0.05; }));
  EXPECT_EQ(zero.life(1).phase, Phase::serving);
  EXPECT_EQ(zero.life(1).progress, 5u);
  zero.send(1, Tag::plan, {});  // it still hears
  EXPECT_TRUE(one.poll(Tag::plan));
}

TEST(LocalWorld, SizesOfBothEndsMustAgree) {
  LocalWorld world(2);
  auto from = world.transport(0), to = world.transport(1);
  Link& out = from->connect(Channel::hidden, 0, 1);
  EXPECT_FALSE(from->connected());
  Link& in = to->connect(Channel::hidden, 0, 1);
  EXPECT_TRUE(from->connected());
  Stream stream(Device{});
  std::byte data[8] = {};
  out.send(data, 8, stream);
  try {
    in.recv(data, 4, stream);
    FAIL() << "4 of 8 bytes were accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("rank 0 sent 8 bytes, rank 1 expected 4"), std::string::npos)
        << error.what();
  }
}

TEST(LocalWorld, DelaysDifferBySeedOnly) {
  auto arrivals = [](uint64_t seed) {  // the order in which messages of two senders arrive
    LocalWorld world(3, {.max_delay_s = 0.05, .seed = seed});
    for (int i = 0; i < 20; i++) {
      for (int from : {1, 2}) world.control(from).send(0, Tag::hello, {});
    }
    std::vector<int> order;
    for (int i = 0; i < 40; i++) order.push_back(take(world.control(0), Tag::hello).from);
    return order;
  };
  EXPECT_NE(arrivals(1), arrivals(2));
}

}  // namespace
}  // namespace pipeinfer

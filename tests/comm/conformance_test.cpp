// What every Control and host Transport promises, over threads and over MPI (see harness.h).
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "harness.h"

namespace pipeinfer {
namespace {

/// `size` bytes that depend on `key`.
std::vector<std::byte> pattern(size_t size, uint32_t key) {
  std::vector<std::byte> bytes(size);
  uint32_t state = key * 2654435761u + 1;
  for (auto& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

TEST(Control, KeepsTheOrderOfEachSender) {
  on_every_rank([](Job& job) {
    Control& control = job.control();
    constexpr int kMessages = 300;
    for (int i = 0; i < kMessages; i++) {
      for (int to = 0; to < job.size(); to++)
        control.send(to, Tag::plan, pattern(i * 7 % 100, i * 10 + job.rank()));
    }
    std::vector<int> next(job.size(), 0);
    for (int i = 0; i < kMessages * job.size(); i++) {
      const Message message = take(control, Tag::plan);
      const int number = next.at(message.from)++;
      EXPECT_EQ(message.bytes, pattern(number * 7 % 100, number * 10 + message.from));
    }
    EXPECT_TRUE(eventually([&] { return control.flushed(); }));
    barrier(control);
  });
}

TEST(Control, TakesByTagOrOldestFirst) {
  on_every_rank([](Job& job) {
    Control& control = job.control();
    const int to = (job.rank() + 1) % job.size();
    control.send(to, Tag::hello, pattern(1, 1));
    control.send(to, Tag::result, pattern(2, 2));
    control.send(to, Tag::plan, pattern(3, 3));
    EXPECT_EQ(take(control, Tag::result).bytes, pattern(2, 2));
    take(control, Tag::plan);  // so that hello is there too
    control.send(job.rank(), Tag::timing, {});
    EXPECT_FALSE(control.poll(Tag::stop));
    if (job.rank() == 0) {
      take(control, Tag::hello);  // a faster rank may already wait for 0 in the barrier: no oldest to expect
    } else {
      const auto oldest = control.poll();
      ASSERT_TRUE(oldest);
      EXPECT_EQ(oldest->tag, Tag::hello);
    }
    EXPECT_EQ(take(control, Tag::timing).from, job.rank());
    barrier(control);
  });
}

TEST(Control, CarriesEmptyAndLargeMessages) {
  on_every_rank([](Job& job) {
    Control& control = job.control();
    const int to = (job.rank() + 1) % job.size(), from = (job.rank() + job.size() - 1) % job.size();
    control.send(to, Tag::hello, {});
    control.send(to, Tag::hello, pattern(5'000'003, job.rank()));
    EXPECT_TRUE(take(control, Tag::hello).bytes.empty());
    EXPECT_EQ(take(control, Tag::hello).bytes, pattern(5'000'003, from));
    EXPECT_TRUE(eventually([&] { return control.flushed(); }));
    barrier(control);
  });
}

TEST(Control, WaitEndsWithAMessageOrWake) {
  on_every_rank([](Job& job) {
    Control& control = job.control();
    control.wait(0.01);  // takes news that an earlier test left
    std::thread waker([&] { control.wake(); });
    const double start = now_s();
    control.wait(60);
    waker.join();
    control.send(job.rank(), Tag::hello, {});
    control.wait(60);
    take(control, Tag::hello);
    EXPECT_LT(now_s() - start, 30);
    barrier(control);
  });
}

TEST(Control, ShowsLifePhaseAndProgress) {
  on_every_rank([](Job& job) {
    Control& control = job.control();
    control.show_life(Phase::loading, 0);
    control.show_life(Phase::serving, 10 + job.rank());
    std::vector<int> peers(job.size() - 1);
    std::iota(peers.begin(), peers.end(), 1);
    if (job.rank() != 0) peers = {0};
    for (int peer : peers) {
      EXPECT_TRUE(eventually([&] { return control.life(peer).progress == 10u + peer; }));
      EXPECT_EQ(control.life(peer).phase, Phase::serving);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    for (int peer : peers) {
      EXPECT_LT(control.life(peer).silent_s, 1.2);
      EXPECT_GT(control.life(peer).no_progress_s, 1.2);
    }
    barrier(control);
    control.show_life(Phase::serving, 20 + job.rank());
    for (int peer : peers) {
      EXPECT_TRUE(eventually([&] { return control.life(peer).progress == 20u + peer; }));
      EXPECT_LT(control.life(peer).no_progress_s, 1.2);
    }
    barrier(control);
  });
}

TEST(HostTransport, CarriesARing) {
  on_every_rank([](Job& job) {
    const int rank = job.rank(), last = job.size() - 1;
    auto transport = job.host_transport(Device{});
    Stream stream(Device{});
    Link* in = rank > 0 ? &transport->connect(Channel::hidden, rank - 1, rank) : nullptr;
    Link* out = rank < last ? &transport->connect(Channel::hidden, rank, rank + 1) : nullptr;
    Link* back = rank == 0 || rank == last ? &transport->connect(Channel::tokens, last, 0) : nullptr;
    open_links(*transport);
    const std::vector<size_t> sizes = {1, 4096, 0, 9'000'001, 17, 65'536};
    const int kRounds = 200;
    auto size_of = [&](int i) { return i < 12 ? sizes[i % sizes.size()] : size_t(i); };
    std::thread returned([&] {  // as the pipeline does: tokens come back while later steps leave
      for (int i = 0; rank == 0 && i < kRounds; i++) {
        std::vector<std::byte> tokens(8);
        back->recv(tokens.data(), tokens.size(), stream);
        EXPECT_EQ(tokens, pattern(8, i));
      }
    });
    for (int i = 0; i < kRounds; i++) {
      std::vector<std::byte> hidden = pattern(size_of(i), i);
      if (in) {
        std::fill(hidden.begin(), hidden.end(), std::byte{0});
        in->recv(hidden.data(), hidden.size(), stream);
        EXPECT_EQ(hidden, pattern(size_of(i), i)) << "round " << i << " on rank " << rank;
      }
      if (out) {
        out->send(hidden.data(), hidden.size(), stream);
        std::fill(hidden.begin(), hidden.end(), std::byte{0xee});  // the sender may reuse its buffer at once
      }
      if (rank == last) back->send(pattern(8, i).data(), 8, stream);
    }
    returned.join();
    transport->check();
    transport->close(20);
    barrier(job.control());
  });
}

TEST(HostTransport, CarriesTensorsOfManyChunks) {
  on_every_rank([](Job& job) {
    auto transport = job.host_transport(Device{});
    Stream stream(Device{});
    if (job.rank() < 2) {
      Link& link = transport->connect(Channel::hidden, 1, 0);
      open_links(*transport);
      for (size_t size : {size_t{32} << 20, (size_t{64} << 20) + 5, size_t{3}}) {  // MPI's chunks are 32 MiB
        std::vector<uint64_t> words(size / 8 + 1);
        if (job.rank() == 1) {
          std::iota(words.begin(), words.end(), size);
          link.send(words.data(), size, stream);
        } else {
          link.recv(words.data(), size, stream);
          uint64_t wrong = 0;
          for (size_t i = 0; i < size / 8; i++) wrong += words[i] != size + i;
          EXPECT_EQ(wrong, 0u) << "in " << size << " bytes";
          const uint64_t expected = size + size / 8;
          EXPECT_EQ(std::memcmp(&words[size / 8], &expected, size % 8), 0);
        }
      }
    }
    transport->close(20);
    barrier(job.control());
  });
}

TEST(HostTransport, ChannelsDoNotQueueBehindEachOther) {
  on_every_rank([](Job& job) {
    auto transport = job.host_transport(Device{});
    Stream stream(Device{});
    if (job.rank() < 2) {
      Link& hidden = transport->connect(Channel::hidden, 0, 1);
      Link& tokens = transport->connect(Channel::tokens, 0, 1);
      open_links(*transport);
      if (job.rank() == 0) {
        hidden.send(pattern(3'000'000, 1).data(), 3'000'000, stream);
        tokens.send(pattern(4, 2).data(), 4, stream);
      } else {
        std::vector<std::byte> few(4), many(3'000'000);
        tokens.recv(few.data(), few.size(), stream);
        EXPECT_EQ(few, pattern(4, 2));
        hidden.recv(many.data(), many.size(), stream);
        EXPECT_EQ(many, pattern(3'000'000, 1));
      }
    }
    transport->close(20);
    barrier(job.control());
  });
}

TEST(HostTransport, AbortWakesARecv) {
  on_every_rank([](Job& job) {
    auto transport = job.host_transport(Device{});
    Stream stream(Device{});
    if (job.rank() < 2) {
      Link& link = transport->connect(Channel::kv, 0, 1);
      open_links(*transport);
      if (job.rank() == 1) {
        std::string message;
        std::thread receiver([&] {
          std::byte byte;
          try {
            link.recv(&byte, 1, stream);
          } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::failed);
            message = error.what();
          }
        });
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        transport->abort();
        receiver.join();
        EXPECT_EQ(message, "receiving from rank 0 on rank 1 was aborted");
      }
    }
    transport->close(20);
    barrier(job.control());
  });
}

}  // namespace
}  // namespace pipeinfer

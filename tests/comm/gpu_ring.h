// Tensors of GPUs around a ring of ranks, for any Transport.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "harness.h"

namespace pipeinfer {

/// Rank 0 makes up hidden states, the others pass them on, the last one returns 8 bytes of each to rank 0. Nothing
/// waits for the device before the end, as in the pipeline.
inline void run_gpu_ring(Transport& transport, Control& control, Device device) {
  const int rank = control.rank(), last = control.size() - 1;
  const std::vector<size_t> sizes = {8, 6400, 400'000, 6400, 40'000'000};
  constexpr int kRounds = 40;
  use_device(device);
  Stream stream(device), token_stream(device);
  DeviceBuffer hidden(device, 40'000'000, "hidden"), tokens(device, 8 * kRounds, "tokens");
  PinnedBuffer words(device, 40'000'000, "made up"), returned(device, 8 * kRounds, "returned");
  Link* in = rank > 0 ? &transport.connect(Channel::hidden, rank - 1, rank) : nullptr;
  Link* out = rank < last ? &transport.connect(Channel::hidden, rank, rank + 1) : nullptr;
  Link* back = rank == 0 || rank == last ? &transport.connect(Channel::tokens, last, 0) : nullptr;
  open_links(transport);

  // Made up once; each round sends another part of it, which starts with its own index.
  for (size_t i = 0; i < words.bytes() / 8; i++) words.as<uint64_t>()[i] = i;
  DeviceBuffer source(device, words.bytes(), "source");
  copy_async(source.data(), words.data(), words.bytes(), stream);
  std::vector<Event> sent;
  for (int round = 0; round < kRounds; round++) {
    const size_t size = sizes[round % sizes.size()];
    const size_t start = size == words.bytes() ? 0 : static_cast<size_t>(round);
    if (in) in->recv(hidden.data(), size, stream);
    if (rank == 0) copy_async(hidden.data(), source.as<uint64_t>() + start, size, stream);
    if (out) out->send(hidden.data(), size, stream);
    if (rank == last) {
      // The last 8 bytes: the whole tensor has arrived.
      copy_async(tokens.as<uint64_t>() + round, hidden.as<std::byte>() + size - 8, 8, stream);
      sent.emplace_back(device).record(stream);
      sent.back().block(token_stream);
      back->send(tokens.as<uint64_t>() + round, 8, token_stream);
    }
  }
  for (int round = 0; rank == 0 && round < kRounds; round++) {
    back->recv(tokens.as<uint64_t>() + round, 8, token_stream);
  }
  if (rank == 0) copy_async(returned.data(), tokens.data(), tokens.bytes(), token_stream);
  for (Stream* each : {&stream, &token_stream}) {
    Event done(device);
    done.record(*each);
    EXPECT_TRUE(wait_until(done, 30)) << "rank " << rank;
  }
  for (int round = 0; rank == 0 && round < kRounds; round++) {
    const size_t size = sizes[round % sizes.size()];
    const size_t start = size == words.bytes() ? 0 : static_cast<size_t>(round);
    EXPECT_EQ(returned.as<uint64_t>()[round], start + size / 8 - 1) << "round " << round;
  }
  transport.check();
  transport.close(20);
  barrier(control);
}

}  // namespace pipeinfer

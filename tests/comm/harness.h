// What the conformance tests run on: threads (local_harness.cpp) or an MPI job (mpi_harness.cpp).
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <thread>

#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/comm/job.h"

namespace pipeinfer {

/// Runs `body` on every rank at once, and returns when all have ended.
void on_every_rank(const std::function<void(Job&)>& body);

/// The next message of this tag; throws after 20 s.
inline Message take(Control& control, Tag tag) {
  const double start = now_s();
  for (;;) {
    if (auto message = control.poll(tag)) return std::move(*message);
    if (now_s() - start > 20) runtime_failure(cat("no message of tag ", static_cast<int>(tag), " in 20 s"));
    control.wait(0.1);
  }
}

/// Calls `done` every millisecond until it is true; false after `timeout_s`.
inline bool eventually(const std::function<bool()>& done, double timeout_s = 20) {
  for (const double start = now_s(); !done();) {
    if (now_s() - start > timeout_s) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

/// Returns when every rank has called it.
inline void barrier(Control& control) {
  if (control.rank() != 0) {
    control.send(0, Tag::ready, {});
    take(control, Tag::ready);
    return;
  }
  for (int peer = 1; peer < control.size(); peer++) take(control, Tag::ready);
  for (int peer = 1; peer < control.size(); peer++) control.send(peer, Tag::ready, {});
}

inline void open_links(Transport& transport) {
  if (!eventually([&] { return transport.connected(); })) runtime_failure("links did not open in 20 s");
}

}  // namespace pipeinfer

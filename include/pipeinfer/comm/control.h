// Small host messages between ranks, and signs of life. MPI, or threads in tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace pipeinfer {

/// Every kind of message in one place (and every MPI tag: see mpi.h). Values are the wire format.
enum class Tag : int {
  hello = 1,      ///< rank -> 0: what the rank has (host, device, memory); 0 -> rank: the run's layout
  ready = 2,      ///< rank -> 0: loaded, with its figures; 0 -> rank: serve
  plan = 3,       ///< 0 -> all: a StepPlan
  result = 4,     ///< last -> 0: a StepResult
  finish = 5,     ///< 0 -> all: no more plans; all -> 0: final figures
  fault = 6,      ///< any -> 0 -> all: an exit code and a sentence; the run ends
  exit_code = 7,  ///< 0 -> all: the exit code all ranks leave with
  stop = 8,       ///< any -> 0: SIGTERM or SIGUSR1 was seen on this rank
  unique_id = 9,  ///< NCCL bootstrap of a link
  timing = 10,    ///< a stage -> the next one: when it sent each step
  clock = 11,     ///< 0 <-> rank: clock offsets
  begin = 13,     ///< 0 -> all: everything asked for is in order; whether there is anything to serve
  life = 12,      ///< signs of life: comm's own, never polled
};

struct Message {
  int from = 0;
  Tag tag = Tag::hello;
  std::vector<std::byte> bytes;
};

/// A rank's phase as its peers judge it: only `serving` must show progress. `computing` is a part of it: a long step on
/// a CPU whose clock shows that it gets on.
enum class Phase : uint8_t { starting, loading, serving, finishing, computing };

/// What is known of a peer from its signs of life.
struct PeerLife {
  double silent_s = 0;       ///< since anything was heard from it
  double no_progress_s = 0;  ///< since its progress counter last changed
  Phase phase = Phase::starting;
  uint64_t progress = 0;  ///< steps it has completed
  bool gone = false;      ///< its process is seen to have ended (known of ranks on the same host only)
};

/// Messages between one pair of ranks arrive in the order they were sent. Thread-safe. Nothing here waits: waiting is
/// the caller's, with deadlines (see pipeline).
class Control {
 public:
  virtual ~Control() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Queues a message; never blocks. To itself: arrives like any other.
  virtual void send(int to, Tag tag, std::span<const std::byte> bytes) = 0;

  /// The oldest message not yet taken, or nothing. With a tag: the oldest one of this tag. Throws Error(failed) where
  /// MPI itself has failed and nothing more can come.
  virtual std::optional<Message> poll() = 0;
  virtual std::optional<Message> poll(Tag tag) = 0;

  /// Sleeps until a message may be there, or for `timeout_s`, or until `wake` is called. May return early.
  virtual void wait(double timeout_s) = 0;
  virtual void wake() = 0;

  /// Whether everything sent has left this rank (the peer's MPI has taken it).
  virtual bool flushed() const = 0;

  /// What this rank tells its peers of itself, about ten times in the shortest deadline, from a thread of its own.
  virtual void show_life(Phase phase, uint64_t progress) = 0;

  /// What is known of `peer` (of ranks other than 0: only rank 0 is heard directly, so ask about 0; rank 0 hears all).
  virtual PeerLife life(int peer) const = 0;
};

}  // namespace pipeinfer

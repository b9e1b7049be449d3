// What every Control is made of: a thread-safe inbox, and what is known of the peers' lives.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "pipeinfer/comm/control.h"

namespace pipeinfer {

/// The messages of one rank that nobody has taken yet, oldest first.
class Mailbox {
 public:
  void push(Message message);

  /// Takes the oldest message, or the oldest of this tag. Throws Error(failed) after `fail`, once it is empty.
  std::optional<Message> poll(std::optional<Tag> tag = std::nullopt);

  /// Returns once something was pushed, or `wake` called, since the last wait returned; or after `timeout_s`. So a
  /// caller that polls one tag does not spin on the messages of others. News is for one waiting thread.
  void wait(double timeout_s);
  void wake();

  /// Nothing will come any more, for this reason.
  void fail(const std::string& message);

 private:
  std::mutex mutex_;
  std::condition_variable news_condition_;
  std::deque<Message> messages_;
  bool news_ = false;
  std::string failure_;
};

/// When each peer was last heard, and what it last said of itself. Thread-safe.
class LifeTable {
 public:
  /// Where no thread has called anything for `stopped_after_s`, this process itself was stopped (a suspended job or
  /// machine), and no peer is to blame for that time.
  LifeTable(int size, double stopped_after_s);

  /// This process runs.
  void running();
  /// Something, anything, came from this peer.
  void heard(int peer);
  /// The peer's own words. A new phase counts as progress.
  void said(int peer, Phase phase, uint64_t progress);

  PeerLife at(int peer);

 private:
  struct Entry {
    double heard_s, progress_s;
    Phase phase = Phase::starting;
    uint64_t progress = 0;
  };
  double excuse();  // returns the time; with the lock held

  const double stopped_after_s_;
  std::mutex mutex_;
  std::vector<Entry> peers_;
  double running_s_;
};

}  // namespace pipeinfer

#include "pipeinfer/comm/mailbox.h"

#include <algorithm>
#include <chrono>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"

namespace pipeinfer {

void Mailbox::push(Message message) {
  std::lock_guard lock(mutex_);
  messages_.push_back(std::move(message));
  news_ = true;
  news_condition_.notify_all();
}

std::optional<Message> Mailbox::poll(std::optional<Tag> tag) {
  std::lock_guard lock(mutex_);
  auto found = std::find_if(messages_.begin(), messages_.end(),
                            [&](const Message& message) { return !tag || message.tag == *tag; });
  if (found == messages_.end()) {
    if (!failure_.empty()) runtime_failure(failure_);
    return std::nullopt;
  }
  Message message = std::move(*found);
  messages_.erase(found);
  return message;
}

void Mailbox::wait(double timeout_s) {
  std::unique_lock lock(mutex_);
  news_condition_.wait_for(lock, std::chrono::duration<double>(std::min(timeout_s, 3600.0)),
                           [&] { return news_; });
  news_ = false;
}

void Mailbox::wake() {
  std::lock_guard lock(mutex_);
  news_ = true;
  news_condition_.notify_all();
}

void Mailbox::fail(const std::string& message) {
  std::lock_guard lock(mutex_);
  failure_ = message;
  news_ = true;
  news_condition_.notify_all();
}

LifeTable::LifeTable(int size) {
  const double now = now_s();
  peers_.resize(size, Entry{now, now});
}

void LifeTable::heard(int peer) {
  std::lock_guard lock(mutex_);
  peers_.at(peer).heard_s = now_s();
}

void LifeTable::said(int peer, Phase phase, uint64_t progress) {
  std::lock_guard lock(mutex_);
  Entry& entry = peers_.at(peer);
  entry.heard_s = now_s();
  if (entry.phase != phase || entry.progress != progress) entry.progress_s = entry.heard_s;
  entry.phase = phase;
  entry.progress = progress;
}

void LifeTable::excuse(double gap_s) {
  std::lock_guard lock(mutex_);
  const double now = now_s();
  for (Entry& entry : peers_) {
    entry.heard_s = std::min(now, entry.heard_s + gap_s);
    entry.progress_s = std::min(now, entry.progress_s + gap_s);
  }
}

PeerLife LifeTable::at(int peer) const {
  std::lock_guard lock(mutex_);
  PI_CHECK(peer >= 0 && peer < static_cast<int>(peers_.size()), "no rank ", peer);
  const Entry& entry = peers_[peer];
  const double now = now_s();
  return {now - entry.heard_s, now - entry.progress_s, entry.phase, entry.progress};
}

}  // namespace pipeinfer

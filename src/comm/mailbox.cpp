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

LifeTable::LifeTable(int size, double stopped_after_s)
    : stopped_after_s_(stopped_after_s), running_s_(now_s()) {
  peers_.resize(size, Entry{running_s_, running_s_});
}

double LifeTable::excuse() {
  const double now = now_s(), gap = now - running_s_;
  running_s_ = now;
  if (gap <= stopped_after_s_) return now;
  for (Entry& entry : peers_) {
    entry.heard_s = std::min(now, entry.heard_s + gap);
    entry.progress_s = std::min(now, entry.progress_s + gap);
  }
  return now;
}

void LifeTable::running() {
  std::lock_guard lock(mutex_);
  excuse();
}

void LifeTable::heard(int peer) {
  std::lock_guard lock(mutex_);
  peers_.at(peer).heard_s = excuse();
}

void LifeTable::said(int peer, Phase phase, uint64_t progress) {
  std::lock_guard lock(mutex_);
  Entry& entry = peers_.at(peer);
  entry.heard_s = excuse();
  if (entry.phase != phase || entry.progress != progress) entry.progress_s = entry.heard_s;
  entry.phase = phase;
  entry.progress = progress;
}

PeerLife LifeTable::at(int peer) {
  std::lock_guard lock(mutex_);
  PI_CHECK(peer >= 0 && peer < static_cast<int>(peers_.size()), "no rank ", peer);
  const double now = excuse();
  const Entry& entry = peers_[peer];
  return {now - entry.heard_s, now - entry.progress_s, entry.phase, entry.progress};
}

}  // namespace pipeinfer

#include "pipeinfer/app/progress.h"

#include <unistd.h>

#include <cstdio>
#include <string>

#include "pipeinfer/base/clock.h"

namespace pipeinfer {

namespace {
constexpr double kBarEveryS = 0.2, kLineEveryS = 5;
constexpr int kBarWidth = 24;
}  // namespace

Progress::Progress(int64_t total_requests)
    : total_(total_requests), terminal_(isatty(STDERR_FILENO)), begin_s_(now_s()), shown_s_(begin_s_) {}

Progress::~Progress() {
  if (drawn_) std::fprintf(stderr, "\r\x1b[K");
}

void Progress::update(int64_t done, int64_t tokens) {
  const double now = now_s();
  if (now - shown_s_ < (terminal_ ? kBarEveryS : kLineEveryS)) return;
  show(done, tokens, now);
  shown_s_ = now;
  shown_tokens_ = tokens;
}

void Progress::show(int64_t done, int64_t tokens, double now) {
  const double rate = static_cast<double>(tokens - shown_tokens_) / (now - shown_s_);
  char left[32] = "";
  if (done > 0) {
    const auto s = static_cast<int64_t>((now - begin_s_) / static_cast<double>(done) *
                                        static_cast<double>(total_ - done));
    std::snprintf(left, sizeof left, ", %lld:%02lld left", static_cast<long long>(s / 60),
                  static_cast<long long>(s % 60));
  }
  char text[160];
  std::snprintf(text, sizeof text, "%lld/%lld prompts, %.1f tok/s%s", static_cast<long long>(done),
                static_cast<long long>(total_), rate, left);
  if (!terminal_) {
    std::fprintf(stderr, "pipeinfer: %s\n", text);
    return;
  }
  const int filled = total_ > 0 ? static_cast<int>(kBarWidth * done / total_) : 0;
  const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
  std::fprintf(stderr, "\r[%s] %s\x1b[K", bar.c_str(), text);
  drawn_ = true;
}

}  // namespace pipeinfer

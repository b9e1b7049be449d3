// How far a run is, on stderr: a bar on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>

namespace pipeinfer {

class Progress {
 public:
  explicit Progress(int64_t total_requests);
  ~Progress();

  /// Shows, at most every 0.2 s (terminal) or 5 s, how many requests are done, tokens/s and the time left.
  void update(int64_t done, int64_t tokens);

 private:
  void show(int64_t done, int64_t tokens, double now);

  const int64_t total_;
  const bool terminal_;
  const double begin_s_;
  double shown_s_;
  int64_t shown_tokens_ = 0;
  bool drawn_ = false;
};

}  // namespace pipeinfer
